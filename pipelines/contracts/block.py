"""The block: records of events and labels, column by column, from decoding to publication."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
from numpy.typing import NDArray

from pipelines.columns import Columns
from pipelines.contracts.contract import Refusal
from pipelines.order import EVENT

# Measured memory of a str or bytes object without its characters, and of a refusal.
_TEXT_BYTES, _REFUSAL_BYTES = 58, 136
_NO_DUPLICATE = -1


@dataclass(frozen=True, kw_only=True, slots=True)
class Block(Columns):
    """n records in the one order. Every column is an array whose first dimension is n.

    If a record is refused, its decoded columns are blank: "" or None, 0, NaN. A label has no numbers and no
    categories, an event has no label. The fold (the update of the state) fills columns of scored events only.

    Shapes: (n,), except `entity_*` (n, number of entities), `numbers` (n, number of numbers), `category_*`
    (n, number of categories), `numeric` (n, number of numeric columns), or (n, 0) before the fold.
    """

    # Position of the record in Kafka, and its place in the one order.
    kind: NDArray[np.int8]
    partition: NDArray[np.int32]
    offset: NDArray[np.int64]
    arrival_ms: NDArray[np.int64]
    clock_ms: NDArray[np.int64]  # effective time; for an out-of-turn record, that of its place
    out_of_turn: NDArray[np.bool_]
    # Raw: bytes or None.
    key: NDArray[np.object_]
    value: NDArray[np.object_]
    # Decoded.
    refusal: NDArray[np.object_]  # None if the record is accepted
    event_id: NDArray[np.object_]
    time_ms: NDArray[np.int64]  # event time; for a label, that of its event
    entity_texts: NDArray[np.object_]
    entity_hashes: NDArray[np.uint64]  # 0 = missing
    numbers: NDArray[np.float64]  # NaN = missing
    category_texts: NDArray[np.object_]
    category_hashes: NDArray[np.uint64]  # 0 = missing; the model's categorical columns
    label: NDArray[np.int8]
    labelled_at_ms: NDArray[np.int64]
    label_source: NDArray[np.object_]
    has_unknown_fields: NDArray[np.bool_]
    # Folded.
    duplicate_of: NDArray[np.int64]  # offset of the original event, -1 if not a duplicate
    late_ms: NDArray[np.int64]
    numeric: NDArray[np.float64]  # the model's numeric columns
    features_hash: NDArray[np.uint64]

    @classmethod
    def blank(cls, n: int, *, n_entities: int, n_numbers: int, n_categories: int) -> Self:
        """A block of n blank records; the columns may be written into."""
        return cls(
            kind=np.full(n, EVENT, np.int8),
            partition=np.zeros(n, np.int32),
            offset=np.zeros(n, np.int64),
            arrival_ms=np.zeros(n, np.int64),
            clock_ms=np.zeros(n, np.int64),
            out_of_turn=np.zeros(n, np.bool_),
            key=np.full(n, None, np.object_),
            value=np.full(n, None, np.object_),
            refusal=np.full(n, None, np.object_),
            event_id=np.full(n, "", np.object_),
            time_ms=np.zeros(n, np.int64),
            entity_texts=np.full((n, n_entities), None, np.object_),
            entity_hashes=np.zeros((n, n_entities), np.uint64),
            numbers=np.full((n, n_numbers), np.nan),
            category_texts=np.full((n, n_categories), None, np.object_),
            category_hashes=np.zeros((n, n_categories), np.uint64),
            label=np.zeros(n, np.int8),
            labelled_at_ms=np.zeros(n, np.int64),
            label_source=np.full(n, None, np.object_),
            has_unknown_fields=np.zeros(n, np.bool_),
            duplicate_of=np.full(n, _NO_DUPLICATE, np.int64),
            late_ms=np.zeros(n, np.int64),
            numeric=np.empty((n, 0)),
            features_hash=np.zeros(n, np.uint64),
        )

    @property
    def is_event(self) -> NDArray[np.bool_]:
        return self.kind == EVENT

    @property
    def is_accepted(self) -> NDArray[np.bool_]:
        """Mask of the records that keep the contract; shape (n,)."""
        return np.fromiter((refusal is None for refusal in self.refusal.tolist()), np.bool_, len(self))

    @property
    def is_duplicate(self) -> NDArray[np.bool_]:
        """Mask of the events that are duplicates, in a folded block; shape (n,)."""
        return self.duplicate_of != _NO_DUPLICATE

    @property
    def is_scored(self) -> NDArray[np.bool_]:
        """Mask of the events that have features, in a folded block; shape (n,)."""
        return self.is_event & self.is_accepted & ~self.is_duplicate

    def with_refusals(self, rows: NDArray[np.bool_], refusals: Iterable[Refusal]) -> Self:
        """A copy of the block in which the rows of a mask are refused; their other columns are unchanged."""
        refusal = self.refusal.copy()
        for row, refused in zip(np.flatnonzero(rows).tolist(), refusals, strict=True):
            refusal[row] = refused
        return replace(self, refusal=refusal)

    @property
    def n_bytes(self) -> int:
        """Approximate memory of the columns, including their texts."""
        n = sum(getattr(self, name).nbytes for name in self.__slots__)
        for column in (self.key, self.value, self.event_id, self.entity_texts, self.category_texts, self.label_source):
            texts = list(filter(None, column.ravel().tolist()))
            n += _TEXT_BYTES * len(texts) + sum(map(len, texts))
        for refusal in filter(None, self.refusal.tolist()):
            n += _REFUSAL_BYTES + len(refusal.detail)
        return n
