"""What the scorer needs of a model."""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray


class Explained(Protocol):
    """Why a model gave its score; each of `reasons` has the attributes of `Reason`."""

    @property
    def reasons(self) -> Sequence[Any]: ...

    @property
    def score_if_all_expected(self) -> float: ...


class Model(Protocol):
    """What the scorer needs of a model; scores lie in [0, 1], high = anomalous."""

    digest: str
    threshold: float

    @property
    def numeric_names(self) -> Sequence[str]: ...

    @property
    def categorical_names(self) -> Sequence[str]: ...

    def score(self, numeric: NDArray[np.float64], categorical: NDArray[np.uint64]) -> NDArray[np.float32]: ...

    def explain(self, numeric: NDArray[np.float64], categorical: NDArray[np.uint64]) -> Sequence[Explained]: ...
