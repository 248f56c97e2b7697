"""Rows in columns: what records have in common before and after they are decoded."""

from collections.abc import Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray


class Columns:
    """A base of dataclasses with slots, whose fields are arrays with the same first dimension: the rows."""

    __slots__: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(getattr(self, self.__slots__[0]))

    def take(self, rows: NDArray[Any] | slice) -> Self:
        """Select rows by a slice, a mask or indices. A slice shares memory with these columns."""
        made: Any = type(self)
        return made(**{name: getattr(self, name)[rows] for name in self.__slots__})  # type: ignore[no-any-return]

    @classmethod
    def concat(cls, parts: Sequence[Self]) -> Self:
        """Concatenate one or more."""
        filled = [part for part in parts if len(part)] or parts[:1]
        if len(filled) == 1:
            return filled[0]
        made: Any = cls
        columns = {name: np.concatenate([getattr(part, name) for part in filled]) for name in cls.__slots__}
        return made(**columns)  # type: ignore[no-any-return]
