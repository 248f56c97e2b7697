"""Flow: judge the newest model on labels that it has not seen, and make it the challenger, then the champion."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Literal

from prefect import flow
from prefect.artifacts import create_table_artifact
from prefect.exceptions import FlowPauseTimeout
from prefect.flow_runs import pause_flow_run
from prefect.input import RunInput

from flows import evidence, moves, stages, training_data, verdict
from flows.alone import alone
from flows.evidence import Evidence, Shadow
from flows.gate import Figures
from flows.lineage import AS_OF, flow_run_tag, lineage, time_of
from flows.retries import retry_unless_mistaken
from flows.serve.model import ColumnsByName, loaded_model
from flows.serve.shadow_report import shadow_report
from flows.settings import Settings, registry_name
from flows.stages import artifact_key, run_log, run_name, stage
from flows.streams.shipped import load
from flows.verdict import Check
from models.ship import registry
from models.ship.registry import Alias
from pipelines.contracts.stream import Stream
from pipelines.errors import UnmaskError

APPROVAL_S = 86_400  # for a person to decide; the next run asks again

Outcome = Literal["champion", "challenger", "candidate"]


class NothingToPromoteError(UnmaskError):
    """The registry has no model to judge."""


class Approval(RunInput):
    """What a person decides about a model that has passed the gate."""

    approve: bool
    by: str
    why: str = ""


@dataclass(frozen=True)
class Candidate:
    """The model to judge, and the version of the champion, if there is one."""

    version: int
    alias: Alias
    tags: Mapping[str, str]
    model: ColumnsByName
    champion: tuple[int, dict[str, str]] | None


@dataclass(frozen=True)
class Decision:
    """The result of the gate: what the model is now, by whom, and each check with its finding and whether it holds."""

    version: int
    digest: str
    outcome: Outcome
    checks: dict[str, Check]
    by: str = "gate"
    why: str = ""
    forced: bool = False

    @property
    def promoted(self) -> bool:
        """Whether the model is the champion now."""
        return self.outcome == "champion"

    @property
    def words(self) -> str:
        """The result in one line."""
        failed = "; ".join(f"{name}: {one.seen}" for name, one in self.checks.items() if not one.holds)
        link = " although " if self.promoted else ": "
        said = f"{link}{failed}" if failed else ("" if self.promoted else f": {self.why}")
        return f"version {self.version} is the {self.outcome}{said}"


@flow(name="promote", flow_run_name=run_name, retries=1, retry_delay_seconds=10)
@retry_unless_mistaken
@alone
def promote(stream: Path, as_of: datetime | None = None, force: bool = False, approved_by: str = "") -> Decision:
    """Judge the newest model beside the champion, on matured labels that neither has seen, and in shadow.

    If all checks but the one of the shadow hold, it becomes the challenger; if all hold, the champion. With
    `approval = "person"` in the stream file, the run pauses first, until somebody approves it.

    Args:
        stream: path of the stream file, or the name of a shipped stream.
        as_of: use only data that had arrived by this time; empty is now.
        force: make it the champion even if a check fails. A model that cannot be loaded is never promoted.
        approved_by: the person who has approved it already; the run does not pause.
    """
    settings, spec = Settings(), load(stream)
    for candidate in _find(settings, spec):
        if _is_settled(settings, spec, candidate):
            return Decision(candidate.version, candidate.model.digest, "champion", {}, why="it is the champion already")
        found, checks = _judge(settings, spec, candidate, as_of)
        if not _failed(checks) - {"shadow"}:
            break  # otherwise the newer one, if this is a challenger, is judged
    decision = _decide(settings, spec, candidate, checks, force=force, approved_by=approved_by)
    _carry_out(settings, spec, candidate, decision, found)
    rows = [{"check": name, "found": one.seen, "holds": one.holds} for name, one in checks.items()]
    create_table_artifact(key=artifact_key(spec.name, "gate"), table=rows, description=decision.words)
    return decision


@stage("find the model to judge")
def _find(settings: Settings, stream: Stream) -> list[Candidate]:
    """The newest model; before it a challenger that is scoring in shadow, or newer ones would never let it finish."""
    uri, name = settings.tracking_uri(), registry_name(stream)
    if healed := moves.heal_alias(settings, stream):
        run_log().warning(healed)
    aliases: tuple[Alias, ...] = ("candidate", "challenger")
    named = {alias: found for alias in aliases if (found := registry.version_of(name, alias, tracking_uri=uri))}
    if not named:
        raise NothingToPromoteError(f"{name} has no candidate in MLflow at {uri}; run `unmask finetune` first")
    champion = registry.version_of(name, "champion", tracking_uri=uri)
    newest = max(named, key=lambda alias: named[alias][0])
    wanted: list[Alias] = [newest]
    waits = stream.promotion.shadow_events > 0 and newest == "candidate" and "challenger" in named
    if waits and (champion is None or named["challenger"][0] > champion[0]):
        wanted.insert(0, "challenger")
    judged: list[Candidate] = []
    for alias in wanted:
        version, tags = named[alias]
        where, _ = registry.resolve_version(name, version, tracking_uri=uri, cache=settings.model_cache)
        judged.append(Candidate(version, alias, tags, loaded_model(settings, stream, where.digest), champion))
        run_log().info(f"version {version}, the {alias}; the champion is {champion[0] if champion else 'none yet'}")
    return judged


def _is_settled(settings: Settings, stream: Stream, candidate: Candidate) -> bool:
    """Whether the model is the champion, and scorers have been told so: a kill may have come in between."""
    is_champion = candidate.champion is not None and candidate.champion[0] == candidate.version
    return is_champion and moves.is_promoted(settings, stream, candidate.model.digest)


def _failed(checks: Mapping[str, Check]) -> set[str]:
    return {name for name, one in checks.items() if not one.holds}


@stage("gather the evidence")
def _judge(
    settings: Settings, stream: Stream, candidate: Candidate, as_of: datetime | None
) -> tuple[Evidence | None, dict[str, Check]]:
    """The evidence, and the checks of it; without the columns of the model there is none."""
    missing = sorted(candidate.model.missing)
    columns = {"columns": Check(f"the stream does not have {missing}" if missing else "all present", not missing)}
    if missing:
        return None, columns
    lake = settings.lake(stream)
    data = stages.read(settings, lake, stream, as_of=as_of)
    columns |= {"age": _age(candidate), "history": _history(settings, stream, candidate)}
    found = evidence.measure(
        stream,
        candidate.model,
        candidate.tags,
        data,
        training_data.entities_of(lake, stream, data.event_id),
        _formers(settings, stream, candidate),
        has_labels=candidate.tags.get("has_head") == "1",
        min_frauds=stream.promotion.min_frauds,
        shadow=_shadow(settings, stream, candidate.model.digest),
    )
    checks = columns | verdict.judge(found, Figures.of_tags(candidate.tags), stream.promotion)
    for name, one in checks.items():
        run_log().info(f"{name}: {one.seen}: {'holds' if one.holds else 'DOES NOT HOLD'}")
    return found, checks


def _decide(
    settings: Settings,
    stream: Stream,
    candidate: Candidate,
    checks: Mapping[str, Check],
    *,
    force: bool,
    approved_by: str,
) -> Decision:
    """What the checks, and a person where one is asked, make of the model."""
    made = candidate.version, candidate.model.digest
    failed = _failed(checks)
    if force:
        why = "forced" if failed else "all checks hold"
        return Decision(*made, "champion", dict(checks), by=approved_by or "gate", why=why, forced=bool(failed))
    if failed - {"shadow"}:
        return Decision(*made, "challenger" if candidate.alias == "challenger" else "candidate", dict(checks))
    if failed:
        return Decision(*made, "challenger", dict(checks))
    if stream.promotion.approval == "automatic" or approved_by:
        return Decision(*made, "champion", dict(checks), by=approved_by or "gate", why="all checks hold")
    answer = _ask(candidate, checks)
    if answer is None:
        return Decision(*made, "challenger", dict(checks), why="nobody has approved it yet")
    if not answer.approve:
        return Decision(*made, "challenger", dict(checks), by=answer.by, why=answer.why or "declined")
    champion = registry.version_of(registry_name(stream), "champion", tracking_uri=settings.tracking_uri())
    judged = candidate.champion[0] if candidate.champion else None
    if (champion[0] if champion else None) != judged or not _history(settings, stream, candidate).holds:
        why = "approved, but the champion has changed meanwhile: run it again"
        return Decision(*made, "challenger", dict(checks), by=answer.by, why=why)
    return Decision(*made, "champion", dict(checks), by=answer.by, why=answer.why or "approved")


def _ask(candidate: Candidate, checks: Mapping[str, Check]) -> Approval | None:
    """Pause until a person approves or declines on the Prefect page; None if nobody does in time."""
    said = "\n".join(f"- **{name}**: {one.seen}" for name, one in checks.items())
    words = f"Version {candidate.version} has passed the gate. Approve it as the champion?\n\n{said}"
    run_log().info("waiting until a person approves version %d on this page", candidate.version)
    try:
        return pause_flow_run(
            wait_for_input=Approval.with_initial_data(description=words), timeout=APPROVAL_S, key="approval"
        )
    except FlowPauseTimeout:
        return None


@stage("carry out the decision")
def _carry_out(
    settings: Settings, stream: Stream, candidate: Candidate, decision: Decision, found: Evidence | None
) -> None:
    """Move the aliases and note the evidence. Repeated after a kill, it comes to the same."""
    uri, name = settings.tracking_uri(), registry_name(stream)
    marks = (
        lineage(stream, settings.lake(stream))
        | flow_run_tag()
        | {
            "model.version": str(decision.version),
            "model.digest": decision.digest,
            "outcome": decision.outcome,
            "by": decision.by,
        }
    )
    title = f"version {decision.version}"
    with registry.open_run(f"{stream.name}/promote", tracking_uri=uri, run_name=title, tags=marks) as run:
        if decision.outcome != "candidate":
            registry.set_alias(name, "challenger", decision.version, tracking_uri=uri)
        if found is not None:
            run.log_document("evidence", asdict(found))
        if decision.promoted:
            _note_reference(settings, stream, candidate, found)
            moves.promote(
                settings,
                stream,
                decision.digest,
                decision.version,
                by=decision.by,
                why=decision.why,
                evidence=moves.evidence_digest({} if found is None else asdict(found)),
                run=run.run_id,
                forced=decision.forced,
            )
        run.log_metrics({"promoted": float(decision.promoted), "threshold": candidate.model.threshold})
        checks = decision.checks
        seen, holds = [one.seen for one in checks.values()], [one.holds for one in checks.values()]
        run.log_table("gate", {"check": list(checks), "found": seen, "holds": holds})
    run_log().info(decision.words)


def _note_reference(settings: Settings, stream: Stream, candidate: Candidate, found: Evidence | None) -> None:
    """Keep the best former champion as the reference, unless the new champion is at least as good."""
    if candidate.champion is None or (found is not None and verdict.is_new_reference(found, stream.promotion)):
        return
    version, tags = candidate.champion
    registry.set_tag(
        registry_name(stream),
        candidate.version,
        "gate_reference_version",
        tags.get("gate_reference_version") or str(version),
        tracking_uri=settings.tracking_uri(),
    )


def _age(candidate: Candidate) -> Check:
    """Whether the model was trained on data at least as new as that of the champion."""
    if candidate.champion is None:
        return Check("there is no champion", True)
    ours, theirs = (time_of(tags, AS_OF) or 0 for tags in (candidate.tags, candidate.champion[1]))
    seen = "trained on older data than the champion" if ours < theirs else "its data is as new as the champion's"
    return Check(seen, ours >= theirs)


def _history(settings: Settings, stream: Stream, candidate: Candidate) -> Check:
    """Whether the model has not been given up before, by a person or by the scorers."""
    why = moves.given_up(settings, stream, candidate.model.digest)
    return Check(why or "it was not given up before", why is None)


def _formers(settings: Settings, stream: Stream, candidate: Candidate) -> dict[str, evidence.Former]:
    return {} if candidate.champion is None else evidence.formers_of(settings, stream, candidate.champion)


def _shadow(settings: Settings, stream: Stream, digest: str) -> Shadow | None:
    """What the model did in shadow; None if it did not score, or Kafka cannot be asked."""
    try:
        told = shadow_report(settings.connection(), stream, model=digest)
    except UnmaskError as error:  # Kafka, too, may be out of reach: then the check says that nothing was scored
        run_log().info("no comparison in shadow: %s", error)
        return None
    if not told.n_both:
        return None
    mine, champions = (told.both + n for n in (told.only_challenger, told.only_champion))
    return Shadow(told.n_both, mine / told.n_both, champions / told.n_both, told.rank_correlation)
