"""The data and the lineage of a training: a dataset for MLflow, and facts for people."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from flows.review.sections import Fact
from flows.training_data import TrainingData
from models.ship.registry import Dataset
from pipelines.contracts.messages import rfc3339
from pipelines.contracts.stream import DAY_MS, Stream
from pipelines.lake.tables import Lake


def dataset_of(stream: Stream, lake: Lake, data: TrainingData) -> Dataset:
    """The training table as a dataset of MLflow."""
    known = data.label[data.known]
    profile: dict[str, str | int | float] = {
        "rows": len(data.table),
        "from": rfc3339(int(data.table.time_ms[0])),
        "to": rfc3339(int(data.table.time_ms[-1])),
        "as of": rfc3339(data.as_of_ms),
        "labels known": len(known),
        "known frauds": int((known == 1).sum()),
        "labels mature after": maturity_words(stream),
        "lake version": lake.version(),
    }
    version = dict(one.split("=") for one in lake.version().split())["events"]
    return Dataset(stream.name, data.features_key, str(lake.folder / "events"), version, data.table.columns, profile)


def facts_of(stream: Stream, data: TrainingData, tags: Mapping[str, str]) -> list[Fact]:
    """What the training learned from, in words.

    Args:
        tags: of `flows.lineage`.
    """
    time_ms, known = data.table.time_ms, data.label[data.known]
    frauds = int((known == 1).sum())
    labels = f"{len(known):,} of them, {frauds:,} fraud ({frauds / max(len(known), 1):.2%})" if len(known) else "none"
    return [
        ("stream", stream.name),
        ("events", f"{len(time_ms):,}, from {rfc3339(int(time_ms[0]))} to {rfc3339(int(time_ms[-1]))}"),
        ("known as of", rfc3339(data.as_of_ms)),
        ("labels known", labels),
        ("labels mature after", maturity_words(stream)),
        ("columns", f"{len(data.table.columns)}, features {data.features_key[:12]}"),
        ("lake", f"version {' '.join(one for one in tags['lake.version'].split() if not one.endswith('=-'))}"),
        ("code", f"Unmask {tags['unmask.version']}, commit {tags['git.commit'][:12]}"),
        ("seed", tags.get("seed", "")),
    ]


def maturity_words(stream: Stream) -> str:
    """After how many days labels are final, and what they report."""
    if stream.labels is None:
        return "the stream has no labels"
    reports = "frauds only" if stream.labels.reports == "frauds" else "frauds and legitimate events"
    return f"{days(stream.labels.maturity_ms)} (reported: {reports})"


def days(ms: int) -> str:
    """A time in days or hours.

    >>> days(7 * 86_400_000), days(5_400_000)
    ('7 days', '1.5 hours')
    """
    return f"{ms / DAY_MS:g} days" if ms >= DAY_MS else f"{ms * 24 / DAY_MS:.3g} hours"


def when(time_ms: NDArray[np.int64]) -> list[str]:
    """Event times as text, to the second."""
    return [f"{rfc3339(one)[:19]}Z" for one in time_ms.tolist()]
