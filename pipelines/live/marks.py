"""Messages of the clock topic: the marks of the order."""

import logging
import math
from typing import Literal

import msgspec

from pipelines.contracts.contract import UNDECODABLE
from pipelines.order import Frontier, Mark, by_kind, from_kinds
from pipelines.record import Received

log = logging.getLogger(__name__)

_InputName = Literal["events", "labels"]


class ClockMark(msgspec.Struct):
    """A message of `<stream>.clock`: what lies before `ends` and takes effect before `below_ms` is next.

    - `below_ms`: ms since 1970; null means the end of time.
    - `ends`: the end of every partition, by kind of topic.
    - `by`: who wrote it.
    """

    below_ms: float | None
    ends: dict[_InputName, list[int]]
    by: str = ""


def mark_of(record: Received) -> Mark | None:
    """Decode a clock mark; None with a warning if the record is not one (the next mark makes up for it)."""
    try:
        mark = msgspec.json.decode(record.value or b"", type=ClockMark)
    except UNDECODABLE as error:
        log.warning(
            "%s [%d], offset %d, is not a clock mark and was skipped: %s",
            record.topic, record.partition, record.offset, error,
        )  # fmt: skip
        return None
    below_ms = math.inf if mark.below_ms is None else mark.below_ms
    return Mark(below_ms, from_kinds(mark.ends), record.offset + 1, mark.by)


def mark_bytes(below_ms: float | None, ends: Frontier, n_partitions: int, *, by: str = "") -> bytes:
    """Encode a clock mark; `below_ms` None or infinity means the end of time, `by` names the writer."""
    below_ms = None if below_ms == math.inf else below_ms
    return msgspec.json.encode({"below_ms": below_ms, "ends": by_kind(ends, n_partitions), "by": by})
