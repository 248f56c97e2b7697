"""`unmask try`: train, score and explain a file with the code of the live scorer."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import polars as pl
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score

from flows import training_data
from flows.offline.check import RuleBroken, by_rule
from flows.offline.events import FileEvents
from flows.serve.model import ColumnsByName
from models.fit.finetune import FinetuneConfig, finetune
from models.fit.leaks import refuse
from models.fit.pretrain import MIN_SKILL, PretrainConfig, pretrain
from models.ship import artifact
from models.ship.artifact import ServedModel
from models.table import Table
from pipelines.contracts.decode import Decoder
from pipelines.contracts.messages import Alert, decode
from pipelines.contracts.stream import Stream
from pipelines.errors import UnmaskError
from pipelines.lake.feature_table import FeatureTable, feature_table
from pipelines.lake.ingest import Intake
from pipelines.lake.tables import Lake
from pipelines.live.alerting import outcomes_of
from pipelines.order import EVENT, Source, SourceClock
from pipelines.record import Received

MIN_ROWS = 500  # for training
MAX_EXPLAINED = 500
DRIFTED, DRIFTED_BY = 2.0, 10  # factor on the allowed alerts, and number of alerts above it
OnShare = Callable[[float, str], None]


class TooFewRowsError(UnmaskError):
    """The file has too few accepted rows for training, or none to score."""


class _Steps:
    """Announces each step before it begins, and measures its duration."""

    def __init__(self, announce: Callable[[str], None] | None, progress: OnShare | None) -> None:
        self._announce = announce or (lambda words: None)
        self._say = progress or (lambda share, words: None)
        self.seconds: dict[str, float] = {}

    @contextmanager
    def step(self, first: float, last: float, words: str) -> Iterator[OnShare]:
        """Run a step that covers a part of the total progress."""
        began_s = time.monotonic()
        self._announce(words)
        self._say(first, words)
        yield lambda share, told: self._say(first + share * (last - first), told)
        self.seconds[words] = time.monotonic() - began_s


@dataclass(frozen=True)
class FieldLearned:
    """A field that the encoder predicts: `gain` in nats over the marginal distribution of the field."""

    name: str
    gain: float

    @property
    def is_predictable(self) -> bool:
        """Whether the prediction is good enough to be used."""
        return self.gain > MIN_SKILL


@dataclass(frozen=True)
class Figures:
    """Quality of the scores on rows with a label.

    Args:
        frauds, rows: number of frauds and of rows with a label.
        precision, recall: precision and recall of the alerts.
        average_precision, label_free: average precision of the model and of the label-free score.
    """

    frauds: int
    rows: int
    precision: float
    recall: float
    average_precision: float
    label_free: float

    @property
    def prevalence(self) -> float:
        """Share of fraud: the average precision of random scores."""
        return self.frauds / self.rows


@dataclass(frozen=True)
class Tried:
    """Result of `try_file`.

    Args:
        n_duplicates: rows that repeat an event id.
        accepted: which rows of the file satisfy the contract, in the order of `FileEvents`, **shape (n,)**.
        refused: refused rows, by rule.
        begin_ms, split_ms, end_ms: the training period is [begin, split), the scored period [split, end].
        n_learned: training rows, of which `n_known` had a label and `n_known_frauds` were fraud.
        learned: how well each field can be predicted.
        has_head: whether there were enough labels for a fine-tuned model.
        threshold: an event raises an alert if its score is above it.
        time_ms, score, label: values of the scored rows, in time order, **shape (n,)**; label -1 = unknown.
        alerts: explained alerts, the highest score first, each with its row in the file.
        n_alerts: number of all alerts.
        row: row in the file of each scored row, **shape (n,)**.
        figures: quality of the scores; None without labels.
        allowed_rate: alert rate at the threshold in validation.
        new_share: share of the scored rows whose key does not occur in the training period.
        seconds: duration of each step.
    """

    stream: Stream
    n_duplicates: int
    accepted: NDArray[np.bool_]
    refused: tuple[RuleBroken, ...]
    begin_ms: int
    split_ms: int
    end_ms: int
    n_learned: int
    n_known: int
    n_known_frauds: int
    learned: tuple[FieldLearned, ...]
    has_head: bool
    threshold: float
    time_ms: NDArray[np.int64]
    score: NDArray[np.float32]
    label: NDArray[np.int8]
    row: NDArray[np.int64]
    alerts: tuple[tuple[int, Alert], ...]
    n_alerts: int
    figures: Figures | None
    allowed_rate: float
    new_share: float
    seconds: Mapping[str, float]

    @property
    def alert_rate(self) -> float:
        """Share of the scored rows that raise an alert."""
        return self.n_alerts / max(len(self.score), 1)

    @property
    def has_drifted(self) -> bool:
        """Whether there are far more alerts than allowed: the events have changed since training."""
        return self.n_alerts > DRIFTED * self.allowed_rate * len(self.score) + DRIFTED_BY


def try_file(
    stream: Stream,
    events: FileEvents,
    *,
    train_share: float = 0.7,
    seed: int = 0,
    announce: Callable[[str], None] | None = None,
    progress: OnShare | None = None,
) -> Tried:
    """Train on the first part of a file and score the rest.

    Args:
        stream: stream of the events.
        events: events of the file, in time order.
        train_share: share of the rows, the first in time, used for training.
        seed: seed of training.
        announce: called with a description of each step before it begins.
        progress: called with the total share done and a description.

    Raises:
        TooFewRowsError: too few rows are accepted.
        LeakError: a field of the event knows what is to be predicted.
    """
    steps = _Steps(announce, progress)
    with TemporaryDirectory(prefix="unmask-try-") as folder:
        lake = Lake(Path(folder) / "lake", stream)
        with steps.step(0.0, 0.1, f"checking {len(events):,} rows against the contract"):
            fill(lake, stream, events)
            refused, accepted = _refused(lake, events)
            split_ms = _split_ms(lake, events, train_share)
        with steps.step(0.1, 0.25, f"computing the features of {accepted.sum():,} events"):
            features = Path(folder) / "features"
            data = training_data.load(lake, stream, features, as_of_ms=split_ms, min_rows=MIN_ROWS // 2)
            rows = feature_table(lake, stream, features)
            entities = training_data.entities_of(lake, stream, data.event_id)
            refuse(data.table, label=data.label, known=data.known, entities=entities)
        with steps.step(0.25, 0.6, f"training the encoder on {len(data.table):,} events, without labels") as report:
            pretrained = pretrain(data.table, config=PretrainConfig(), seed=seed, progress=report)
        known_frauds = int((data.label[data.known] == 1).sum())
        with steps.step(0.6, 0.85, f"training the model on {known_frauds:,} known frauds") as report:
            config = FinetuneConfig(budget=training_data.budget_of(stream))
            model = finetune(
                pretrained, data.table, label=data.label, known=data.known, config=config, seed=seed, progress=report
            )
            digest = artifact.save(model, Path(folder) / "model", lineage={"source": "unmask try"})
            served = artifact.load(Path(folder) / "model", expect=digest)
        later = np.flatnonzero(rows.time_ms >= split_ms)
        with steps.step(0.85, 0.92, f"scoring {len(later):,} later events"):
            score = served.score(rows.numeric[later], rows.categorical[later])
            table = Table(data.table.columns, rows.numeric[later], rows.categorical[later], rows.time_ms[later], {})
            label_free = pretrained.score(table)
        alerting = np.flatnonzero(score > np.float32(served.threshold))
        alerting = alerting[np.argsort(-score[alerting], kind="stable")]
        explained = alerting[:MAX_EXPLAINED]
        with steps.step(0.92, 1.0, f"explaining {len(explained):,} alerts"):
            alerts = tuple(_alerts(stream, events, served, rows, later[explained]))
    label = events.label[rows.offset[later]]
    return Tried(
        stream=stream,
        accepted=accepted,
        n_duplicates=len(rows.duplicates),
        refused=tuple(refused),
        begin_ms=int(rows.time_ms[0]),
        split_ms=split_ms,
        end_ms=int(rows.time_ms[-1]),
        n_learned=len(data.table),
        n_known=int(data.known.sum()),
        n_known_frauds=known_frauds,
        learned=_learned(pretrained.metrics),
        has_head=bool(model.metrics["has_head"]),
        threshold=served.threshold,
        time_ms=rows.time_ms[later],
        score=score,
        label=label,
        row=events.row[rows.offset[later]],
        alerts=alerts,
        n_alerts=len(alerting),
        figures=_figures(score, label, label_free, served.threshold),
        allowed_rate=model.metrics["validation_alert_rate"],
        new_share=_new_share(events, rows.offset[rows.time_ms < split_ms], rows.offset[later]),
        seconds=steps.seconds,
    )


def _new_share(events: FileEvents, learned: NDArray[np.int64], scored: NDArray[np.int64]) -> float:
    """Share of the scored events whose key does not occur in the training period."""
    keys = pl.Series(events.cells[events.stream.key], strict=False)
    return 1 - float(np.mean(keys.gather(scored).is_in(keys.gather(learned).unique().implode()).to_numpy()))


def _refused(lake: Lake, events: FileEvents) -> tuple[list[RuleBroken], NDArray[np.bool_]]:
    """Refused rows by rule, and which events were accepted."""
    rows = lake.read("refused").filter(pl.col("topic") == events.stream.topic("events"))
    accepted = np.ones(len(events), bool)
    accepted[rows["offset"].to_numpy()] = False
    found = rows.select("offset", "rule", "detail").iter_rows()
    broken = by_rule(events.stream, ((int(events.row[offset]), rule, detail) for offset, rule, detail in found))
    return broken, accepted


def _split_ms(lake: Lake, events: FileEvents, train_share: float) -> int:
    """Time of the first scored event."""
    times = lake.read("events", columns=["event_time_ms"])["event_time_ms"].sort()
    first = int(len(times) * train_share)
    if first < MIN_ROWS or first >= len(times):
        raise TooFewRowsError(
            f"{len(times):,} of {len(events):,} rows satisfy the contract; {MIN_ROWS} for training and some for "
            "scoring are needed. Run `unmask check` to see why rows are refused, or use more rows"
        )
    return int(times[first])


def fill(lake: Lake, stream: Stream, events: FileEvents) -> None:
    """Write the rows to a lake as the ingest flow would: in one partition, with events that arrive when they happen and
    labels that arrive when they have matured. The offset of an event is its index in `events`."""
    intake, topic = Intake(stream, lake), stream.topic("events")
    now_ms = int(time.time() * 1000)
    arrivals = np.minimum(events.time_ms, now_ms)
    records: list[Received] = []
    for offset, (arrival_ms, (key, value)) in enumerate(zip(arrivals.tolist(), events.messages(), strict=True)):
        records.append(Received(topic, 0, offset, arrival_ms, key, value))
    if records:
        intake.events(topic, records, {0: len(records) - 1})
    if stream.labels is not None:
        reports = list(_reports(stream, events, arrivals + stream.labels.maturity_ms))
        if reports:
            intake.labels(reports[0].topic, reports, {0: len(reports) - 1})


def _reports(stream: Stream, events: FileEvents, at_ms: NDArray[np.int64]) -> Iterator[Received]:
    assert stream.labels is not None
    topic = stream.topic("labels")
    for offset, index in enumerate(np.flatnonzero(np.isin(events.label, stream.labels.sent)).tolist()):
        key, value = events.report(index, int(at_ms[index]))
        yield Received(topic, 0, offset, int(at_ms[index]), key, value)


def _alerts(
    stream: Stream, events: FileEvents, served: ServedModel, rows: FeatureTable, chosen: NDArray[np.int64]
) -> Iterator[tuple[int, Alert]]:
    """The alerts of some rows, as published by the scorer, each with its row in the file."""
    topic, clock = stream.topic("events"), SourceClock(Source(EVENT, 0))
    messages = _messages_at(events, rows.offset[chosen])
    records = [
        Received(topic, 0, offset, ms, key, value)
        for ms, (offset, (key, value)) in zip(rows.clock_ms[chosen].tolist(), messages, strict=True)
    ]
    block = replace(
        Decoder(stream).block(clock.run(records)),
        late_ms=rows.late_ms[chosen],
        numeric=rows.numeric[chosen],
        features_hash=rows.hashes[chosen],
    )
    for message in outcomes_of(block, stream, ColumnsByName(served, stream)).messages:
        if message.topic == stream.topic("alerts"):
            alert = decode(message.value, Alert)
            yield int(events.row[alert.source.offset]), alert


def _messages_at(events: FileEvents, offsets: NDArray[np.int64]) -> Iterator[tuple[int, tuple[bytes, bytes]]]:
    chosen = replace(events, cells={name: [values[i] for i in offsets] for name, values in events.cells.items()})
    yield from zip(offsets.tolist(), chosen.messages(), strict=True)


def _learned(metrics: Mapping[str, float]) -> tuple[FieldLearned, ...]:
    skill = {name.removeprefix("skill."): gain for name, gain in metrics.items() if name.startswith("skill.")}
    return tuple(FieldLearned(name, gain) for name, gain in sorted(skill.items(), key=lambda one: -one[1]))


def _figures(
    score: NDArray[np.float32], label: NDArray[np.int8], label_free: NDArray[np.float32], threshold: float
) -> Figures | None:
    judged = label >= 0
    fraud = label[judged] == 1
    if not fraud.any() or fraud.all():
        return None
    alert = score[judged] > np.float32(threshold)
    return Figures(
        frauds=int(fraud.sum()),
        rows=len(fraud),
        precision=float(fraud[alert].mean()) if alert.any() else 0.0,
        recall=float(alert[fraud].mean()),
        average_precision=float(average_precision_score(fraud, score[judged])),
        label_free=float(average_precision_score(fraud, label_free[judged])),
    )
