"""Decodes records in the one order to a block."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from pipelines.contracts.block import Block
from pipelines.contracts.contract import Event, EventContract, Label, LabelContract, Refusal, hashes_of
from pipelines.contracts.event_columns import ColumnContract
from pipelines.contracts.stream import Stream
from pipelines.order import LABEL, Run


class Decoder:
    """Decodes the events and labels of a stream.

    Args:
        refused: events (partition, offset) that are refused whatever the contract says, and by which rule.

    Example:
        >>> from pipelines.contracts.stream_file import parse
        >>> from pipelines.order import EVENT, Source, SourceClock
        >>> from pipelines.record import Received
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
        >>> clock = SourceClock(Source(EVENT, 0))
        >>> good = Received("logins.events", 0, 0, 5, b"ann", b'{"id": "e1", "at": 5, "user": "ann"}')
        >>> broken = Received("logins.events", 0, 1, 6, b"ann", b"{")
        >>> block = Decoder(stream).block(clock.run([good, broken]))
        >>> block.event_id.tolist(), [refusal and refusal.rule for refusal in block.refusal]
        (['e1', ''], [None, 'bad_json'])
    """

    def __init__(self, stream: Stream, refused: Mapping[tuple[int, int], str] = MappingProxyType({})) -> None:
        self._stream, self._refused = stream, refused
        self._last_refused = max((offset for _, offset in refused), default=-1)
        self._columns = ColumnContract(stream)
        self._events, self._labels = EventContract(stream), LabelContract(stream)

    def block(self, run: Run) -> Block:
        """The records of a run as a block, accepted or refused."""
        stream = self._stream
        block = Block.blank(
            len(run),
            n_entities=len(stream.entities),
            n_numbers=len(stream.numbers),
            n_categories=len(stream.categories),
        )
        if len(run):
            self._fill(block, run)
        return block

    def _fill(self, block: Block, run: Run) -> None:
        block.kind[:], block.partition[:], block.offset[:] = run.kind, run.partition, run.offset
        block.arrival_ms[:], block.clock_ms[:] = run.arrival_ms, run.effective_ms
        block.out_of_turn[:] = run.out_of_turn
        block.key[:], block.value[:] = run.key, run.value
        events = np.flatnonzero(block.is_event)
        if self._refused and block.offset.min() <= self._last_refused:
            self._fill_refused(block, events)
            events = np.flatnonzero(block.is_event & block.is_accepted)
        is_done = self._fill_good_events(block, events)
        if not is_done.all():
            self._fill_one_by_one(block, np.flatnonzero(~is_done).tolist(), run.unreadable)

    def _fill_refused(self, block: Block, events: NDArray[np.int64]) -> None:
        for row in events.tolist():
            rule = self._refused.get((int(block.partition[row]), int(block.offset[row])))
            if rule is not None:
                block.refusal[row] = Refusal(rule, "it was refused when it arrived")

    def _fill_good_events(self, block: Block, events: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Fill those of some rows that pass every check of whole columns; returns their mask, shape (n,)."""
        stream = self._stream
        columns = self._columns.columns(
            block.value[events].tolist(), block.key[events].tolist(), block.arrival_ms[events]
        )
        rows = events[columns.rows]
        is_done = np.zeros(len(block), np.bool_)
        is_done[rows] = True
        at = slice(None) if len(rows) == len(block) else rows
        block.event_id[at], block.time_ms[at] = columns.texts[stream.event_id], columns.time_ms
        block.numbers[at], block.has_unknown_fields[at] = columns.numbers, columns.has_unknown_fields
        for names, texts, hashes in (
            (stream.entities, block.entity_texts, block.entity_hashes),
            (stream.categories, block.category_texts, block.category_hashes),
        ):
            for column, name in enumerate(names):
                texts[at, column], hashes[at, column] = columns.texts[name], hashes_of(columns.texts[name])
        return is_done

    def _fill_one_by_one(self, block: Block, rows: Sequence[int], unreadable: NDArray[np.object_]) -> None:
        """Fill the rows of labels and of the other events; refused ones get their refusal."""
        events, labels = _EventColumns(), _LabelColumns()
        for row in rows:
            decoded: Event | Label | Refusal
            why, value, key = unreadable[row], block.value[row], block.key[row]
            if block.refusal[row] is not None:
                continue
            if why is not None:
                decoded = Refusal("unreadable_record", why)
            elif block.kind[row] == LABEL:
                decoded = self._labels.decode(value, key)
            else:
                decoded = self._events.decode(value, key, int(block.arrival_ms[row]))
            if type(decoded) is Event:
                events.add(row, decoded)
            elif type(decoded) is Label:
                labels.add(row, decoded)
            else:
                block.refusal[row] = decoded
        events.into(block)
        labels.into(block)


class _Columns:
    """Values of accepted records, column by column. Keeping row tuples alive would slow the garbage collector."""

    def __init__(self) -> None:
        self.rows: list[int] = []
        self.event_ids: list[str] = []
        self.times_ms: list[int] = []
        self.entity_texts: list[str | None] = []  # row by row, like all attributes with several columns

    def into(self, block: Block) -> None:
        """Write the columns to their rows of a block."""
        if self.rows:
            self._write(block, slice(None) if len(self.rows) == len(block) else self.rows)

    def _write(self, block: Block, at: slice | list[int]) -> None:
        block.event_id[at], block.time_ms[at] = self.event_ids, self.times_ms
        _write_texts(block.entity_texts, block.entity_hashes, at, self.entity_texts)


class _EventColumns(_Columns):
    def __init__(self) -> None:
        super().__init__()
        self.numbers: list[float] = []
        self.category_texts: list[str | None] = []
        self.has_unknown_fields: list[bool] = []

    def add(self, row: int, event: Event) -> None:
        self.rows.append(row)
        self.event_ids.append(event.event_id)
        self.times_ms.append(event.time_ms)
        self.entity_texts.extend(event.entity_texts)
        self.numbers.extend(event.numbers)
        self.category_texts.extend(event.category_texts)
        self.has_unknown_fields.append(event.has_unknown_fields)

    def _write(self, block: Block, at: slice | list[int]) -> None:
        super()._write(block, at)
        block.numbers[at] = np.array(self.numbers, np.float64).reshape(len(self.rows), -1)
        _write_texts(block.category_texts, block.category_hashes, at, self.category_texts)
        block.has_unknown_fields[at] = self.has_unknown_fields


class _LabelColumns(_Columns):
    def __init__(self) -> None:
        super().__init__()
        self.labels: list[int] = []
        self.labelled_at_ms: list[int] = []
        self.sources: list[str] = []

    def add(self, row: int, label: Label) -> None:
        self.rows.append(row)
        self.event_ids.append(label.event_id)
        self.times_ms.append(label.time_ms)
        self.entity_texts.extend(label.entity_texts)
        self.labels.append(label.label)
        self.labelled_at_ms.append(label.labelled_at_ms)
        self.sources.append(label.source)

    def _write(self, block: Block, at: slice | list[int]) -> None:
        super()._write(block, at)
        block.label[at], block.labelled_at_ms[at], block.label_source[at] = (
            self.labels,
            self.labelled_at_ms,
            self.sources,
        )


def _write_texts(
    texts: NDArray[np.object_], hashes: NDArray[np.uint64], at: slice | list[int], cells: list[str | None]
) -> None:
    """Write texts, given row by row, and their hashes."""
    width = texts.shape[1]
    for column in range(width):
        of_column = cells[column::width]
        texts[at, column] = of_column
        hashes[at, column] = hashes_of(of_column)
