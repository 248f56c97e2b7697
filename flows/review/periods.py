"""A model's validation beside what it found later, and the measured reasons for the gap."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
import pyarrow.compute as pc
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score

from flows.review.data import days
from flows.review.sections import Plot, Section
from flows.training_data import TrainingData
from models import plots
from models.evaluation import with_known_fraud
from models.fit.pretrain import Pretrained
from models.fit.split import last_share
from models.paired import average_precision_interval
from models.plots import Period
from pipelines.contracts.stream import Stream
from pipelines.lake.tables import Lake

GAP = 0.05  # of average precision: worth an explanation
KNOWN_FRAUD = "validation_known_fraud_share"
MOVED = 1.25  # growth of the share of ordinary events with a known fraud: worth a word


@dataclass(frozen=True)
class Live:
    """What a model gave in service, for the events whose labels are known by now. **Shape (n,)**, rows of the table."""

    rows: NDArray[np.int64]
    score: NDArray[np.float64]


def live_of(lake: Lake, stream: Stream, data: TrainingData, *, digest: str) -> Live:
    """Scores that a model published, from the lake, for the events of a training table with a known label."""
    scores = lake.read("scores", columns=["event_id", "score"], where=pc.field("model") == digest)
    rows = np.flatnonzero(data.known)
    events = pl.DataFrame({"event_id": data.event_id.gather(rows), "row": rows})
    found = events.join(scores.unique("event_id", keep="first"), on="event_id", how="inner", maintain_order="left")
    return Live(found["row"].to_numpy(), found["score"].to_numpy())


def period(
    name: str,
    data: TrainingData,
    rows: NDArray[np.int64],
    score: NDArray[np.floating],
    encoder: Pretrained,
) -> Period | None:
    """Quality of scores on some rows of a training table, beside the label-free score; None if none is fraud.

    Args:
        rows: indices in ascending order, **shape (n,)**.
        score: their scores, **shape (n,)**.
    """
    label, table = data.label[rows], data.table.take(rows)
    if not (label == 1).any():
        return None
    entity = np.arange(len(rows)) if table.entity is None else table.entity
    return Period(
        name,
        float(average_precision_score(label == 1, score)),
        frauds=int((label == 1).sum()),
        events=len(rows),
        label_free=float(average_precision_score(label == 1, encoder.score(table))),
        interval=average_precision_interval(label, score, entity),
    )


def validation_figures(data: TrainingData, known: NDArray[np.bool_], *, share: float) -> dict[str, float]:
    """What `validation` and `section` need of the rows of a validation, beside the metrics of the training.

    Args:
        known: labels that the training knew, of the first m rows, **shape (m,)**.
        share: share of the known rows, the last in time, that the validation takes.
    """
    rows = last_share(np.flatnonzero(known), share).valid
    if len(rows) == 0:
        return {}
    before = known_fraud_share(data, rows)
    figures = {"validation_events": float(len(rows)), "validation_frauds": float((data.label[rows] == 1).sum())}
    return figures if before is None else figures | {KNOWN_FRAUD: before}


def validation(figures: Mapping[str, float]) -> list[Period]:
    """The validation of a training, without and with the delay of labels; empty without labels.

    Args:
        figures: metrics of the training and `validation_figures`.
    """
    names = {"validation_ap": "validation", "validation_ap_delayed": "validation,\nlabels delayed as live"}
    return [
        Period(
            name,
            figures[key],
            frauds=int(figures.get("validation_frauds", 0)),
            events=int(figures.get("validation_events", 0)),
            label_free=figures.get("validation_ap_label_free"),
        )
        for key, name in names.items()
        if key in figures
    ]


def known_fraud_share(data: TrainingData, rows: NDArray[np.int64]) -> float | None:
    """Share of ordinary events of whose entities a fraud was known; None: no column says so, or there is none."""
    ordinary = rows[data.label[rows] != 1]
    found = with_known_fraud(data.table.take(ordinary)) if len(ordinary) else None
    return None if found is None else float(found.mean())


def section(
    stream: Stream,
    name: str,
    found: Sequence[Period],
    *,
    title: str,
    shares: tuple[float | None, float | None] = (None, None),
) -> Section:
    """The periods side by side, and why they differ, each reason with its figure.

    Args:
        name: of the plot's file.
        found: validation first, the one to explain last.
        title: heading.
        shares: `known_fraud_share` of the first and of the last period.
    """
    return Section(title, why(stream, found, shares=shares), plots=[Plot(name, plots.periods(found))])


def why(
    stream: Stream, found: Sequence[Period], *, shares: tuple[float | None, float | None] = (None, None)
) -> list[str]:
    """Reasons for the difference between the first and the last period, in words."""
    first, last = found[0], found[-1]
    gap = first.average_precision - last.average_precision
    words = [f"Average precision was {first.average_precision:.3f} in validation and is {_found(last)}."]
    if gap < GAP:
        return [*words, "There is no gap to explain."]
    delayed = next((one for one in found if "delayed" in one.name), None)
    if delayed is not None and stream.labels is not None:
        cost = first.average_precision - delayed.average_precision
        words.append(
            f"Label delay: labels are final after {days(stream.labels.maturity_ms)}, so a model in service knows no "
            f"younger fraud, while validation follows its last label at once. With labels cut as in service, the "
            f"same validation gives {delayed.average_precision:.3f}: {cost:.3f} of the gap of {gap:.3f}."
        )
    before, after = shares
    if before and after and after > MOVED * before:
        words.append(
            f"Features from labels say less: a fraud of the same entity was known for {before:.0%} of the ordinary "
            f"events in validation, and for {after:.0%} later. Windows of labels fill until the history is as old as "
            f"the longest window and the maturity together ({days(_fill_ms(stream))})."
        )
    if first.label_free is not None and last.label_free is not None:
        words.append(
            f"The events themselves: without labels, average precision is {first.label_free:.3f} in validation and "
            f"{last.label_free:.3f} later, on {first.share:.2%} and {last.share:.2%} of fraud. What changes more than "
            "this comes from labels."
        )
    if last.interval and last.interval[1] >= first.average_precision:
        words.append("The interval of the later figure includes that of validation: the gap may be chance.")
    return words


def _found(one: Period) -> str:
    interval = f" (95 % interval {one.interval[0]:.3f} to {one.interval[1]:.3f})" if one.interval else ""
    return f"{one.average_precision:.3f} {' '.join(one.name.split())}{interval}, on {one.frauds:,} frauds"


def _fill_ms(stream: Stream) -> int:
    assert stream.labels is not None
    labelled = [one.window_ms or 0 for one in stream.columns if one.label_fed]
    return stream.labels.maturity_ms + max(labelled, default=0)
