"""The models of a backtest: found by alias or digest, and what each of them may have seen in its training."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from flows.lineage import AS_OF, ENCODER_AS_OF, LEARNED_UNTIL, time_of
from flows.settings import Settings, registry_name
from models.ship import registry
from pipelines.contracts.messages import rfc3339
from pipelines.contracts.stream import Stream
from pipelines.errors import UnmaskError

ALIASES = ("champion", "challenger", "candidate")
SHORTEST = 12  # digits of a digest
UNKNOWN_MS = 2**62
_TRAINED = (AS_OF, ENCODER_AS_OF)


class NothingToTestError(UnmaskError):
    """A backtest cannot be made: no such model or period, or a model may have seen the period in its training."""


@dataclass(frozen=True)
class Candidate:
    """A model to test.

    Args:
        name: as it was asked for.
        seen_until_ms: its head or encoder was trained on events that arrived before this; `UNKNOWN_MS` if unknown.
        why: which training that was, or what is not known.
        learned_until_ms: its head was trained on labels of events before this.
        encoder_run: MLflow run of its encoder.
    """

    name: str
    version: int
    digest: str
    seen_until_ms: int
    why: str
    learned_until_ms: int
    encoder_run: str


def candidates(settings: Settings, stream: Stream, names: Sequence[str]) -> list[Candidate]:
    """The models that aliases or digests name, each once.

    Raises:
        NothingToTestError: there is no such model, or several begin with these digits.
    """
    found: dict[str, Candidate] = {}
    for name in names:
        one = _candidate(settings, stream, name)
        found.setdefault(one.digest, one)
    return list(found.values())


def _candidate(settings: Settings, stream: Stream, name: str) -> Candidate:
    version, tags = _version(settings, stream, name)
    run_id = tags.get("encoder.run", "")
    times: dict[str, tuple[Mapping[str, str], str]] = {
        f"{name} saw events up to {{}} ({tag})": (tags, tag) for tag in _TRAINED
    }
    encoder = registry.find_run(run_id, tracking_uri=settings.tracking_uri()) if run_id else None
    if encoder is not None:
        times[f"the encoder of {name} saw events up to {{}} ({AS_OF})"] = (encoder.tags, AS_OF)
    seen_until_ms, why = _seen(name, times)
    learned_ms = time_of(tags, LEARNED_UNTIL)
    return Candidate(
        name=name if name in ALIASES else tags["digest"][:SHORTEST],
        version=version,
        digest=tags["digest"],
        seen_until_ms=seen_until_ms,
        why=why,
        learned_until_ms=seen_until_ms if learned_ms is None else learned_ms,
        encoder_run=run_id,
    )


def _version(settings: Settings, stream: Stream, name: str) -> tuple[int, dict[str, str]]:
    registered, uri = registry_name(stream), settings.tracking_uri()
    if name in ALIASES:
        found = registry.version_of(registered, name, tracking_uri=uri)  # type: ignore[arg-type]
        if found is None:
            first = "finetune" if name == "candidate" else "promote"
            raise NothingToTestError(f"{registered} has no {name} in MLflow at {uri}; run `unmask {first}` first")
        return found
    if len(name) < SHORTEST or set(name) - set("0123456789abcdef"):
        raise NothingToTestError(
            f"the model {name!r} is neither an alias ({', '.join(ALIASES)}) nor the first {SHORTEST} or more digits of "
            "a digest; MLflow shows the digest of each version as a tag"
        )
    versions = registry.versions_like(registered, name, tracking_uri=uri)
    digests = {tags["digest"] for _, tags in versions}
    if len(digests) != 1:
        what = "no version" if not digests else f"{len(digests)} models"
        raise NothingToTestError(f"MLflow at {uri} has {what} of {registered} with a digest that begins with {name}")
    return versions[0]


def _seen(name: str, times: Mapping[str, tuple[Mapping[str, str], str]]) -> tuple[int, str]:
    """The latest of the times in some tags, and which it is."""
    found: dict[str, int] = {}
    for words, (tags, tag) in times.items():
        said_ms = time_of(tags, tag)
        if said_ms is None:
            return UNKNOWN_MS, (
                f"tag {tag} of {name} is {tags.get(tag, '')!r}; it must be the end of its training data, such as "
                f"{rfc3339(0)}. Without it, the period may include training events"
            )
        found[words] = said_ms
    latest = max(found, key=lambda words: found[words])
    return found[latest], latest.format(rfc3339(found[latest]))
