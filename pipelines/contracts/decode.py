"""Records in the one order -> a block."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pipelines.contracts.block import Block
from pipelines.contracts.contract import Event, EventContract, Label, LabelContract, Refusal, hashes_of
from pipelines.contracts.stream import Stream
from pipelines.order import LABEL, Item


class Decoder:
    """Decodes the events and labels of a stream.

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
        ... ''')
        >>> clock = SourceClock(Source(EVENT, 0))
        >>> good = Received("logins.events", 0, 0, 5, b"ann", b'{"id": "e1", "at": 5, "user": "ann"}')
        >>> broken = Received("logins.events", 0, 1, 6, b"ann", b"{")
        >>> block = Decoder(stream).block([clock.item(good), clock.item(broken)])
        >>> block.event_id.tolist(), [refusal and refusal.rule for refusal in block.refusal]
        (['e1', ''], [None, 'bad_json'])
    """

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._events, self._labels = EventContract(stream), LabelContract(stream)

    def block(self, items: Sequence[Item]) -> Block:
        """The records of some items, accepted or refused."""
        stream = self._stream
        block = Block.blank(
            len(items),
            n_entities=len(stream.entities),
            n_numbers=len(stream.numbers),
            n_categories=len(stream.categories),
        )
        if items:
            self._fill(block, items)
        return block

    def _fill(self, block: Block, items: Sequence[Item]) -> None:
        keys, sources, arrivals, records, out_of_turn = zip(*items, strict=True)
        _, partitions, offsets, _, raw_keys, values, _ = zip(*records, strict=True)
        block.kind[:] = [source.kind for source in sources]
        block.partition[:], block.offset[:] = partitions, offsets
        block.arrival_ms[:], block.clock_ms[:] = arrivals, [key.effective_ms for key in keys]
        block.out_of_turn[:] = out_of_turn
        block.key[:], block.value[:] = raw_keys, values
        events: list[Event] = []
        labels: list[Label] = []
        event_rows: list[int] = []
        label_rows: list[int] = []
        decode_event, decode_label = self._events.decode, self._labels.decode
        for row, (_, source, arrival_ms, record, _) in enumerate(items):
            decoded: Event | Label | Refusal
            if record.unreadable:
                decoded = Refusal("unreadable_record", record.unreadable)
            elif source.kind == LABEL:
                decoded = decode_label(record.value, record.key)
            else:
                decoded = decode_event(record.value, record.key, arrival_ms)
            if type(decoded) is Event:
                events.append(decoded)
                event_rows.append(row)
            elif type(decoded) is Label:
                labels.append(decoded)
                label_rows.append(row)
            else:
                block.refusal[row] = decoded
        if events:
            self._fill_events(block, event_rows, events)
        if labels:
            self._fill_labels(block, label_rows, labels)

    @staticmethod
    def _fill_events(block: Block, rows: list[int], events: list[Event]) -> None:
        at = _selector(rows, len(block))
        ids, times, entity_texts, numbers, category_texts, has_unknown = zip(*events, strict=True)
        block.event_id[at], block.time_ms[at] = ids, times
        block.has_unknown_fields[at] = has_unknown
        _fill_texts(block.entity_texts, block.entity_hashes, at, entity_texts)
        _fill_texts(block.category_texts, block.category_hashes, at, category_texts)
        if block.numbers.shape[1]:
            block.numbers[at] = numbers

    @staticmethod
    def _fill_labels(block: Block, rows: list[int], labels: list[Label]) -> None:
        at = _selector(rows, len(block))
        ids, times, entity_texts, values, labelled_at, label_sources = zip(*labels, strict=True)
        block.event_id[at], block.time_ms[at] = ids, times
        block.label[at], block.labelled_at_ms[at], block.label_source[at] = values, labelled_at, label_sources
        _fill_texts(block.entity_texts, block.entity_hashes, at, entity_texts)


_Selector = slice | list[int]


def _selector(rows: list[int], n: int) -> _Selector:
    return slice(None) if len(rows) == n else rows


def _fill_texts(
    texts: NDArray[np.object_],
    hashes: NDArray[np.uint64],
    at: _Selector,
    rows: Sequence[tuple[str | None, ...]],
) -> None:
    """Texts and their hashes, row by row."""
    for column, cells in enumerate(zip(*rows, strict=True)):
        texts[at, column] = cells
        hashes[at, column] = hashes_of(cells)
