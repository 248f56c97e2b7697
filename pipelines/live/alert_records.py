"""The records about single events on the alerts topic: alerts, suppressed alerts, reviews. Bounded in size."""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from pipelines.contracts.messages import (
    MAX_TEXT,
    SHORT_TEXT,
    Alert,
    Reason,
    Review,
    Score,
    SuppressedAlert,
    alert_id_of,
    cut,
)
from pipelines.contracts.stream import Stream
from pipelines.contracts.suppression import Suppression
from pipelines.model import Explained

Cell = float | str | None  # a feature value in readable form; None if missing


def alert_of(
    score: Score,
    *,
    threshold: float,
    entities: Mapping[str, str | None],
    explained: Explained,
    features: Mapping[str, Cell],
    group_id: str | None = None,
    short: bool = False,
) -> Alert:
    """The alert of a score over the threshold, bounded in size; `short` omits reasons and features.

    `features` are the event's model inputs by name, categories as text. The text of a category comes from the event,
    because the model does not know categories that it was not trained on.
    """
    return Alert(
        **_fields_of(score, threshold, entities, short=short),
        **_explanation_of(explained, features, short=short),
        alert_id=alert_id_of(score),
        group_id=group_id,
        count=None if group_id is None else 1,
    )


def review_of(
    score: Score,
    *,
    threshold: float,
    entities: Mapping[str, str | None],
    explained: Explained,
    features: Mapping[str, Cell],
    short: bool = False,
) -> Review:
    """The record of an event that was drawn for review; the arguments are those of `alert_of`."""
    return Review(
        kind="review",
        **_fields_of(score, threshold, entities, short=short),
        **_explanation_of(explained, features, short=short),
        review_id=alert_id_of(score),
    )


def suppressed_of(
    score: Score,
    suppression: Suppression,
    *,
    threshold: float,
    entities: Mapping[str, str | None],
    short: bool = False,
) -> SuppressedAlert:
    """The record of a score over the threshold of an entity whose alerts are suppressed."""
    texts = {name: cut(text) for name, text in msgspec.structs.asdict(suppression).items()}
    return SuppressedAlert(
        kind="suppressed",
        **_fields_of(score, threshold, entities, short=short),
        alert_id=alert_id_of(score),
        suppression=Suppression(**texts),
    )


def features_of(stream: Stream, numeric: NDArray[np.float64], category_texts: Sequence[str | None]) -> dict[str, Cell]:
    """Every model input of one event by name."""
    values: dict[str, Cell] = {
        name: None if np.isnan(value) else float(value)
        for name, value in zip(stream.numeric_columns, numeric.tolist(), strict=True)
    }
    return values | dict(zip(stream.categories, category_texts, strict=True))


def _fields_of(score: Score, threshold: float, entities: Mapping[str, str | None], *, short: bool) -> dict[str, Any]:
    limit = SHORT_TEXT if short else MAX_TEXT
    cut_entities = {name: text and cut(text, limit) for name, text in entities.items()}
    return msgspec.structs.asdict(score) | {"threshold": threshold, "entities": cut_entities}


def _explanation_of(explained: Explained, features: Mapping[str, Cell], *, short: bool) -> dict[str, Any]:
    return {
        "reasons": [] if short else [reason_of(reason, features) for reason in explained.reasons],
        "score_if_all_expected": explained.score_if_all_expected,
        "features": {} if short else {n: cut(v) if isinstance(v, str) else v for n, v in features.items()},
    }


def reason_of(explained: Any, features: Mapping[str, Cell]) -> Reason:
    """A reason as it is published: a category that the model does not know has its text from `features`."""
    reason = msgspec.convert(explained, Reason, from_attributes=True)
    text = features.get(reason.field)
    actual = text if isinstance(text, str) else reason.actual
    actual, expected = (cut(v) if isinstance(v, str) else v for v in (actual, reason.expected))
    return msgspec.structs.replace(reason, actual=actual, expected=expected)
