"""The trial of a new model: on a sample of the events, its scores are compared with those of the model before it."""

import logging
import math
import threading
import time

import numpy as np
from numpy.typing import NDArray

from pipelines.contracts.block import Block
from pipelines.model import Model

log = logging.getLogger(__name__)

PER_S = 250  # events a second that are compared, at most
LEAST_TAKEN = 25  # of a block, so that taking them costs little
MAX_WAITING = 2_000  # events; about 1 MB
ENOUGH = 10_000  # compared events after which the trial is over
LEAST = 1_000  # compared events before a finding
TOP = 0.01  # share of the events with the highest scores
SHARED = 0.3  # of their top events, good models share more: 0.43 is the least seen, one with labels after one without
CHANCE = 1e-3  # that a model which shares so many is returned, at one look


class Trial:
    """Compares a new model with the last one that passed, on the events that are published.

    Lanes offer them; `compare` scores the sample with both models, in the thread of who follows the orders. A new model
    is returned for scores that are no numbers or all the same, or if too few of its top events are those of the former.

    Args:
        former: the last model that passed its trial.
        new: the model on trial.

    Example:
        >>> from tests.pipelines.live.live_scorer import Doubled, Linear
        >>> from tests.pipelines.live.kill_stream import stream_named
        >>> stream = stream_named("s")
        >>> trial = Trial(Linear(stream), Doubled(stream))
        >>> trial.compare()
        >>> trial.finding, trial.is_over
        (None, False)
    """

    def __init__(self, former: Model, new: Model) -> None:
        self.former, self.new = former, new
        self.finding: str | None = None  # why the new model must be returned
        self.n_compared = 0
        self._waiting: list[Block] = []
        self._n_waiting = 0
        self._allowed, self._seen_s = 0.0, time.monotonic()
        self._has_ended = False
        self._lock = threading.Lock()
        self._scores: list[tuple[NDArray[np.float32], NDArray[np.float32]]] = []

    @property
    def is_over(self) -> bool:
        """Whether enough events were compared."""
        return self.n_compared >= ENOUGH

    def end(self) -> None:
        """Let `compare` return soon: a thread must not be in a model when the process ends."""
        self._has_ended = True

    def offer(self, rows: Block) -> None:
        """Take a sample of published events, evenly; never waits for a model."""
        now_s = time.monotonic()
        with self._lock:
            self._allowed = min(self._allowed + PER_S * (now_s - self._seen_s), PER_S)
            self._seen_s = now_s
            n = min(len(rows), int(self._allowed), MAX_WAITING - self._n_waiting)
            if self.is_over or n < min(LEAST_TAKEN, len(rows)):
                return
            self._allowed -= n
            self._n_waiting += n
        some = rows.take(np.linspace(0, len(rows) - 1, n).astype(np.int64)) if n < len(rows) else rows
        with self._lock:
            self._waiting.append(some)

    def compare(self) -> None:
        """Score what was taken with both models, and judge."""
        with self._lock:
            blocks, self._waiting, self._n_waiting = self._waiting, [], 0
        if self.is_over or self.finding is not None:
            return
        for rows in blocks:
            if self._has_ended:
                return
            scored = rows.take(rows.is_scored)
            if len(scored):
                former, new = (m.score(scored.numeric, scored.category_hashes) for m in (self.former, self.new))
                self._scores.append((former, new))
        if blocks and self._scores:
            former, new = (np.concatenate(scores) for scores in zip(*self._scores, strict=True))
            self.finding = finding(former, new)
            self.n_compared = len(new)  # last: from now on the trial may be over


def finding(former: NDArray[np.float32], new: NDArray[np.float32]) -> str | None:
    """Why a new model must be returned, from its scores and those of the model before for the same events, **(n,)**.

    >>> scores = np.linspace(0, 1, 5_000, dtype=np.float32)
    >>> finding(scores, scores**2) is None
    True
    >>> finding(scores, 1 - scores)
    'of its 50 top events among 5000, 0 are among the top 50 of the model before; 15 at least were expected'
    >>> finding(scores, 0 * scores)
    'it gave 5000 events the same score'
    """
    n = len(new)
    if n < LEAST:
        return None
    if n_bad := int((~np.isfinite(new)).sum()):
        return f"{n_bad} of {n} scores are no numbers"
    if former.min() == former.max():  # nothing to compare with
        return None
    if new.min() == new.max():
        return f"it gave {n} events the same score"
    k = max(1, int(TOP * n))
    least = np.partition(former, -k)[-k]
    top = np.lexsort((-former, -new))[:k]  # of equal scores, those that speak for the new model
    shared = int((former[top] >= least).sum())
    if _at_most(shared, k, SHARED) >= CHANCE:
        return None
    return (
        f"of its {k} top events among {n}, {shared} are among the top {k} of the model before; "
        f"{math.ceil(SHARED * k)} at least were expected"
    )


def _at_most(shared: int, k: int, share: float) -> float:
    """The probability of at most `shared` successes in `k` trials."""
    return sum(math.comb(k, i) * share**i * (1 - share) ** (k - i) for i in range(shared + 1))
