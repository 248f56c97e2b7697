"""Masking: which columns are hidden together, and in which passes."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.table import Column

MAX_SINGLE = 8  # up to this number, each field has its own pass; for more fields, eight passes suffice


@dataclass(frozen=True)
class MaskedField:
    """Columns that are hidden together because each reveals the same value.

    Args:
        name: the raw field of the event.
        target: index of the column with the raw value.
        columns: indices of all columns to hide, including ``target``.
    """

    name: str
    target: int
    columns: tuple[int, ...]


def event_fields(columns: Sequence[Column], context: Collection[str] = ()) -> tuple[MaskedField, ...]:
    """The fields of the event that are predicted. Columns built from labels are excluded, and fields of the context.

    If no column has a field (`Column.of`), each column is treated as a field.

    >>> columns = [Column("amount", "numeric", "amount"), Column("c.count.7d", "numeric")]
    >>> [field.name for field in event_fields(columns)]
    ['amount']
    """
    usable = [i for i, column in enumerate(columns) if not column.label_fed]
    if not any(columns[i].of for i in usable):
        return tuple(MaskedField(columns[i].name, i, (i,)) for i in usable)
    members: dict[str, list[int]] = {}
    for i in usable:
        of = columns[i].of
        if of is not None and of not in context:
            members.setdefault(of, []).append(i)
    by_name = {columns[i].name: i for i in usable}
    targets = {of: by_name.get(of, found[0]) for of, found in members.items()}
    # of an entity, such as a shop, the columns have only statistics: there is no value to predict
    return tuple(MaskedField(of, i, tuple(members[of])) for of, i in targets.items() if columns[i].stat is None)


def views(fields: Sequence[MaskedField], d: int, *, seed: int = 0) -> NDArray[np.bool_]:
    """Passes that together hide every field.

    Returns:
        bool, **shape (n_views, d)**, True = hidden. One field per pass if there are few fields, otherwise two rounds
        of four random groups.
    """
    if len(fields) <= MAX_SINGLE:
        groups = [[field] for field in fields]
    else:
        random = np.random.default_rng(seed)
        groups = [
            [fields[i] for i in part]
            for _ in range(2)
            for part in np.array_split(random.permutation(len(fields)), MAX_SINGLE // 2)
        ]
    hidden = np.zeros((len(groups), d), bool)
    for row, group in zip(hidden, groups, strict=True):
        for field in group:
            row[list(field.columns)] = True
    return hidden
