"""The interface of a model, as the scorer uses it."""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray


class Explained(Protocol):
    """The explanation of a score; each of `reasons` has the attributes of `Reason`."""

    @property
    def reasons(self) -> Sequence[Any]: ...

    @property
    def score_if_all_expected(self) -> float: ...


class Model(Protocol):
    """A model; scores are in [0, 1], high means anomalous. The threshold is a 32-bit number, like the scores."""

    digest: str
    threshold: float
    alert_rate: float | None  # share of events that its alert budget allows; None if the budget does not say
    ordered_threshold: float | None  # the threshold, if an operator has ordered it instead of the model's own

    @property
    def numeric_names(self) -> Sequence[str]: ...

    @property
    def categorical_names(self) -> Sequence[str]: ...

    def score(self, numeric: NDArray[np.float64], categorical: NDArray[np.uint64]) -> NDArray[np.float32]: ...

    def explain(self, numeric: NDArray[np.float64], categorical: NDArray[np.uint64]) -> Sequence[Explained]: ...
