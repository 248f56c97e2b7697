"""Alert budgets as text, and the threshold of each from events of before the period."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.score.budget import Budget, threshold_for
from pipelines.errors import UnmaskError

OWN = "model"  # the threshold that came with the model
FORMS = "model, a share such as 0.005, alerts a day such as 40/day, or costs such as cost:200:5 (a miss, a review)"


def budget_of(text: str) -> Budget | None:
    """The budget that a text names; None for the model's own threshold.

    Raises:
        UnmaskError: the text has none of the forms.
        BudgetError: a number is out of range.

    >>> budget_of("40/day").per_day, budget_of("0.005").rate, budget_of("cost:200:5:0.002").cost, budget_of("model")
    (40.0, 0.005, (200.0, 5.0), None)
    """
    if text == OWN:
        return None
    try:
        if text.endswith("/day"):
            return Budget(per_day=float(text.removesuffix("/day")))
        if not text.startswith("cost:"):
            return Budget(rate=float(text))
        missed, review, *fraud_rate = map(float, text.split(":")[1:])
        if len(fraud_rate) < 2:
            return Budget(cost=(missed, review), fraud_rate=fraud_rate[0] if fraud_rate else None)
    except (TypeError, ValueError) as error:
        if isinstance(error, UnmaskError) or type(error) is not ValueError:
            raise
    raise UnmaskError(f"the budget {text!r} is not valid; write {FORMS}")


@dataclass(frozen=True)
class Window:
    """The events of before the period from which thresholds are set, with what was known at the start of the period.

    Args:
        from_ms, until_ms: arrival of its events.
        time_ms: their event times, **shape (n,)**.
        label, known: their labels at `until_ms`, **shape (n,)**.
    """

    from_ms: int
    until_ms: int
    time_ms: NDArray[np.int64]
    label: NDArray[np.int8]
    known: NDArray[np.bool_]

    def since(self, from_ms: int, clock_ms: NDArray[np.int64]) -> "Window":
        """The part that arrived since a time."""
        rows = slice(int(np.searchsorted(clock_ms, from_ms)), None)
        return Window(max(from_ms, self.from_ms), self.until_ms, self.time_ms[rows], self.label[rows], self.known[rows])

    def threshold(self, budget: Budget, scores: NDArray[np.float32]) -> float:
        """The lowest threshold that meets a budget on these events; see `threshold_for`."""
        return threshold_for(budget, scores, self.time_ms, self.label, self.known)
