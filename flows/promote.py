"""Flow: check the challenger and make it the champion if it passes the gate."""

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from prefect import flow
from prefect.artifacts import create_table_artifact

from flows import gate
from flows.alone import alone
from flows.lineage import lineage
from flows.retries import retry_unless_mistaken
from flows.settings import Settings, registry_name
from flows.streams.shipped import load
from models.ship import artifact, registry
from pipelines.contracts.stream import Stream
from pipelines.errors import UnmaskError


class NothingToPromoteError(UnmaskError):
    """The registry has no challenger."""


@dataclass(frozen=True)
class Decision:
    """The result of the gate. `checks` maps each check to its finding and whether it passes."""

    version: int
    digest: str
    promoted: bool
    checks: dict[str, gate.Check]

    @property
    def words(self) -> str:
        """The result in one line."""
        failed = [f"{name}: {seen}" for name, (seen, holds) in self.checks.items() if not holds]
        outcome = "is the champion" if self.promoted else "stays the challenger"
        return (
            f"version {self.version} {outcome}"
            + (f" although {'; '.join(failed)}" if failed and self.promoted else "")
            + (f": {'; '.join(failed)}" if failed and not self.promoted else "")
        )


@flow(name="promote", retries=1, retry_delay_seconds=10, validate_parameters=False)
@retry_unless_mistaken
@alone
def promote(stream: Path, force: bool = False) -> Decision:
    """Check the measurements of the challenger, and move the champion alias to it if all checks pass.

    Args:
        stream: path of the stream file.
        force: move the alias even if a check fails. A model that cannot be loaded is never promoted.
    """
    settings, spec = Settings(), load(Path(stream))
    uri, name = settings.tracking_uri(), registry_name(spec)
    found = registry.version_of(name, "challenger", tracking_uri=uri)
    if found is None:
        raise NothingToPromoteError(f"{name} has no challenger in MLflow at {uri}; run `unmask finetune` first")
    version, tags = found
    champion = registry.version_of(name, "champion", tracking_uri=uri)
    resolved = registry.resolve(name, "challenger", tracking_uri=uri, cache=settings.model_cache)
    model = artifact.load(resolved.folder, expect=resolved.digest)
    checks = _checks(spec, (version, tags), champion[0] if champion else None, {c.name for c in model.columns})
    promoted = force or all(holds for _, holds in checks.values())
    decision = Decision(version, resolved.digest, promoted, checks)
    marks = lineage(spec, settings.lake(spec)) | {
        "model.version": str(version),
        "model.digest": resolved.digest,
    }
    with registry.open_run(f"{spec.name}/promote", tracking_uri=uri, run_name=f"version {version}", tags=marks) as run:
        if promoted:
            registry.set_alias(name, "champion", version, tracking_uri=uri)
        run.log_metrics({"promoted": float(promoted), "threshold": model.threshold})
        rows: dict[str, Sequence[object]] = {
            "check": list(checks),
            "seen": [s for s, _ in checks.values()],
            "holds": [h for _, h in checks.values()],
        }
        run.log_table("gate", rows)
    _record(settings.home / "promotions.jsonl", spec, decision, champion[0] if champion else None)
    table = [{"check": check, "seen": seen, "holds": holds} for check, (seen, holds) in checks.items()]
    create_table_artifact(key="gate", table=table, description=decision.words)
    return decision


def _checks(
    stream: Stream, challenger: tuple[int, dict[str, str]], champion: int | None, columns: set[str]
) -> dict[str, gate.Check]:
    version, tags = challenger
    missing = sorted(columns - {c.name for c in stream.columns})
    checks = {"columns": (f"the stream does not have {missing}" if missing else "all present", not missing)}
    figures = gate.Figures.of_tags(tags)
    if figures is None:
        return checks | {"figures": (f"version {version} was not measured for the gate; run `unmask finetune`", False)}
    beside = tags.get("gate_champion_version", "")
    if champion is not None and champion != version and beside != str(champion):
        seen = f"measured against version {beside or 'none'}, the champion is version {champion}; run `unmask finetune`"
        checks["figures"] = (seen, False)
    return checks | gate.judge(figures)


def _record(path: Path, stream: Stream, decision: Decision, before: int | None) -> None:
    """Append to the log of promotions, because MLflow has no history of aliases."""
    path.parent.mkdir(parents=True, exist_ok=True)
    entry = {"at": time.time(), "stream": stream.name, "from": before, **asdict(decision)}
    with open(path, "a", encoding="utf-8") as log:
        log.write(json.dumps(entry) + "\n")
