"""The contract for many events at once: checks whole columns, and leaves out every event that is not plainly good.

The contract of one event, `EventContract`, is the definition: it decides about the events left out.
"""

from collections.abc import Sequence
from datetime import datetime
from itertools import compress
from operator import attrgetter
from types import NoneType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipelines.contracts.contract import EPOCH, MAX_TIME_MS, MS, UNDECODABLE, EventContract, text_of
from pipelines.contracts.stream import Field, Stream

_EXACT = 2.0**53  # whole numbers below this are the same as 64-bit floats
Texts = Sequence[str | None]
Mask = NDArray[np.bool_]


class EventColumns(NamedTuple):
    """n accepted events, column by column; a missing text is None, a missing number NaN.

    `rows` are their places among the messages, ascending. `texts` has the event id, entities and categories by name.
    Shapes: (n,), except `numbers` (n, number of numbers).
    """

    rows: NDArray[np.int64]
    time_ms: NDArray[np.int64]
    numbers: NDArray[np.float64]
    texts: dict[str, Texts]
    has_unknown_fields: Mask


class ColumnContract:
    """Decodes many messages of `<stream>.events`.

    Example:
        >>> from pipelines.contracts.stream_file import parse
        >>> stream = parse('''
        ... [stream]
        ... name = "logins"
        ... event_id = "id"
        ... event_time = "at"
        ... entities = ["user"]
        ... [fields]
        ... id = { type = "text" }
        ... at = { type = "time" }
        ... user = { type = "text" }
        ... country = { type = "category" }
        ... ''')
        >>> values = [b'{"id": "1"}', b'{"id": "2", "at": 5, "user": "ann"}']
        >>> columns = ColumnContract(stream).columns(values, [b"ann", b"ann"], np.array([5, 6]))
        >>> columns.rows.tolist(), columns.texts["id"]
        ([1], ['2'])
    """

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._strict, self._lenient = EventContract(stream).decoders
        self._names = [field.name for field in stream.fields]
        self._numbers = [stream.field(name) for name in stream.numbers]
        not_texts = {stream.event_time, *stream.numbers}
        self._texts = [field for field in stream.fields if field.name not in not_texts]
        self._needed = {stream.event_id, stream.key}

    def columns(
        self, values: Sequence[bytes | None], keys: Sequence[bytes | None], arrival_ms: NDArray[np.int64]
    ) -> EventColumns:
        """The events that pass every check, of messages with their Kafka keys and arrivals, shape (n,)."""
        rows, messages, with_unknown = self._parsed(values)
        # Not zip(*...): its iterators would trigger the garbage collector.
        cells: dict[str, Sequence[Any]] = {name: list(map(attrgetter(name), messages)) for name in self._names}
        good = np.ones(len(rows), np.bool_)
        time_ms = self._times(cells[self._stream.event_time], arrival_ms[rows], good)
        numbers = np.empty((len(rows), len(self._numbers)))
        for place, field in enumerate(self._numbers):
            numbers[:, place] = _number_column(field, cells[field.name], good)
        texts = {field.name: self._text_column(field, cells[field.name], good) for field in self._texts}
        _check_keys(texts[self._stream.key], [keys[row] for row in rows.tolist()], good)
        if not good.all():
            rows, time_ms, numbers, with_unknown = rows[good], time_ms[good], numbers[good], with_unknown[good]
            texts = {name: list(compress(column, good.tolist())) for name, column in texts.items()}
        return EventColumns(rows, time_ms, numbers, texts, with_unknown)

    def _parsed(self, values: Sequence[bytes | None]) -> tuple[NDArray[np.int64], list[Any], Mask]:
        """Places of the messages that are JSON objects with the right types, the objects, unknown fields or not."""
        decode, most = self._strict.decode, self._stream.max_message_bytes
        messages: list[Any] = []
        left_out: list[int] = []
        with_unknown: list[int] = []
        for row, value in enumerate(values):
            value = value or b""
            try:
                messages.append(decode(value))
            except UNDECODABLE:
                try:
                    messages.append(self._lenient.decode(value))
                    with_unknown.append(row)
                except UNDECODABLE:
                    left_out.append(row)
                    continue
            if len(value) > most:
                messages.pop()
                left_out.append(row)
        is_unknown = np.zeros(len(values), np.bool_)
        is_unknown[with_unknown] = True
        rows = np.delete(np.arange(len(values)), left_out)
        return rows, messages, is_unknown[rows]

    def _times(self, column: Sequence[Any], arrival_ms: NDArray[np.int64], good: Mask) -> NDArray[np.int64]:
        if datetime in set(map(type, column)):
            column = [_milliseconds(value) for value in column]
        times = np.array(column, np.float64)  # NaN if missing
        good &= (times >= 0) & (times <= np.minimum(MAX_TIME_MS, arrival_ms + self._stream.future_tolerance_ms))
        times[~good] = 0
        return times.astype(np.int64)

    def _text_column(self, field: Field, column: Sequence[Any], good: Mask) -> Texts:
        kinds = set(map(type, column))
        if not kinds <= {str, NoneType}:
            column = [value if value is None else text_of(value) for value in column]
        if "" in column:
            column, kinds = [text or None for text in column], {str, NoneType}
        if NoneType in kinds and (field.required or field.name in self._needed):
            good &= np.array([text is not None for text in column], np.bool_)
        if max(map(len, filter(None, column)), default=0) > field.max_length:
            good &= np.array([text is None or len(text) <= field.max_length for text in column], np.bool_)
        if not _is_encodable(column):
            good &= np.array([_is_encodable([text]) for text in column], np.bool_)
        return column


def _milliseconds(value: datetime | int | None) -> int | None:
    """Milliseconds since 1970; None if there is no value or no time zone."""
    if isinstance(value, datetime):
        return None if value.tzinfo is None else (value - EPOCH) // MS
    return value


def _number_column(field: Field, column: Sequence[float | None], good: Mask) -> NDArray[np.float64]:
    numbers = np.array(column, np.float64)
    is_right = np.isfinite(numbers) & (numbers >= field.min) & (numbers <= field.max)
    if field.type == "int":
        is_right &= np.abs(numbers) < _EXACT
    if not field.required:
        is_right |= np.isnan(numbers)  # JSON has no NaN: it is missing
    good &= is_right
    return numbers


def _check_keys(entities: Texts, keys: Sequence[bytes | None], good: Mask) -> None:
    """Only events whose Kafka key is the id of their first entity are good."""
    expected = [text.encode(errors="replace") if text else None for text in entities]
    if expected != keys:
        good &= np.array([a is not None and a == b for a, b in zip(expected, keys, strict=True)], np.bool_)


def _is_encodable(texts: Texts) -> bool:
    """Whether the texts have no unpaired surrogate."""
    try:
        "".join(filter(None, texts)).encode()
    except UnicodeEncodeError:
        return False
    return True
