"""The scores of a block as lines of JSON, one for each event: built column by column, because there are many."""

import re
from collections.abc import Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from pipelines.contracts.block import Block

_PLAIN = re.compile(r"[ !#-\[\]-~]*")  # characters that JSON does not escape
_BOOL = ("false", "true")


def score_lines(
    scored: Block,
    found: NDArray[np.float32],
    is_alert: NDArray[np.bool_],
    *,
    topic: str,
    model: str,
    threshold: float | None = None,
) -> list[str]:
    """One JSON object for each scored event, with the fields of `Score` in their order.

    Args:
        scored: n scored events of one partition of `topic`.
        found: their scores, shape (n,). Nine digits represent each exactly.
        is_alert: whether each is above the threshold, shape (n,).
        model: digest of the model.
        threshold: an ordered one; None if it is the model's own.
    """
    ordered = "" if threshold is None else f',"threshold":{threshold:.9g}'
    after_alert = f',"model":{_json(model)}{ordered},"source":{{"topic":{_json(topic)},"partition":'
    columns = (
        _quoted(scored.event_id.tolist()), found.tolist(), is_alert.tolist(), scored.partition.tolist(),
        scored.offset.tolist(), _times(scored.time_ms), _times(scored.arrival_ms), scored.late_ms.tolist(),
        scored.out_of_turn.tolist(), _hex(scored.features_hash),
    )  # fmt: skip
    return [
        f'{{"event_id":{event_id},"score":{score:.9g},"alert":{_BOOL[alert]}{after_alert}{partition},"offset":{offset}}},'
        f'"event_time":"{event_time}","arrival":"{arrival}","late_ms":{late_ms},"out_of_order":{_BOOL[out_of_order]},'
        f'"features_hash":"{features_hash}"}}'
        for event_id, score, alert, partition, offset, event_time, arrival, late_ms, out_of_order, features_hash in zip(
            *columns, strict=True
        )
    ]


def _json(text: str) -> str:
    return msgspec.json.encode(text).decode()


def _quoted(texts: Sequence[str]) -> list[str]:
    if _PLAIN.fullmatch("".join(texts)):
        return [f'"{text}"' for text in texts]
    return [_json(text) for text in texts]


def _times(time_ms: NDArray[np.int64]) -> list[str]:
    """As `rfc3339` of each.

    >>> _times(np.array([0]))
    ['1970-01-01T00:00:00.000Z']
    """
    texts: list[str] = np.datetime_as_string(time_ms.view("M8[ms]"), unit="ms", timezone="UTC").tolist()
    return texts


def _hex(hashes: NDArray[np.uint64]) -> list[str]:
    """Each as 16 hexadecimal digits.

    >>> _hex(np.array([255], np.uint64))
    ['00000000000000ff']
    """
    digits = hashes.astype(">u8").tobytes().hex()
    return [digits[at : at + 16] for at in range(0, len(digits), 16)]
