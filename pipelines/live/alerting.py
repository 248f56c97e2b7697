"""From a score over the threshold to an alert."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from pipelines.contracts.contract import Event
from pipelines.contracts.messages import MAX_TEXT, SHORT_TEXT, Alert, Reason, Score, cut
from pipelines.contracts.stream import Stream
from pipelines.model import Explained


def alert_of(
    score: Score,
    *,
    threshold: float,
    event: Event,
    entity_names: Sequence[str],
    explained: Explained,
    features: dict[str, float | str | None],
    short: bool = False,
) -> Alert:
    """The alert of a score over the threshold, bounded in size; `short` leaves reasons and features out.

    `features` are the event's model inputs by name, categories as text. A model knows no text of a category that it
    was not trained on: the event has it.
    """
    named = f"{score.source.topic}/{score.source.partition}/{score.source.offset}/{score.model}"
    limit = SHORT_TEXT if short else MAX_TEXT
    return Alert(
        **msgspec.structs.asdict(score),
        alert_id=hashlib.sha256(named.encode()).hexdigest()[:32],
        threshold=threshold,
        entities={n: v and cut(v, limit) for n, v in zip(entity_names, event.entity_ids, strict=True)},
        reasons=[] if short else [_reason_of(reason, features) for reason in explained.reasons],
        score_if_all_expected=explained.score_if_all_expected,
        features={} if short else {n: cut(v) if isinstance(v, str) else v for n, v in features.items()},
    )


def _reason_of(explained: Any, features: Mapping[str, float | str | None]) -> Reason:
    reason = msgspec.convert(explained, Reason, from_attributes=True)
    text = features.get(reason.field)
    actual = text if isinstance(text, str) else reason.actual
    actual, expected = (cut(v) if isinstance(v, str) else v for v in (actual, reason.expected))
    return msgspec.structs.replace(reason, actual=actual, expected=expected)


def features_of(stream: Stream, numeric: NDArray[np.float64], event: Event) -> dict[str, float | str | None]:
    """Every model input of one event by name, for people to read; None where it is missing."""
    values: dict[str, float | str | None] = {
        name: None if np.isnan(value) else float(value)
        for name, value in zip(stream.numeric_columns, numeric.tolist(), strict=True)
    }
    return values | dict(zip(stream.categories, event.category_texts, strict=True))
