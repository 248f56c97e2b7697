"""The model in use: lanes read it once for each batch, so a change takes effect between two batches."""

import threading

from pipelines.live.shadow import Shadow
from pipelines.live.together import Together
from pipelines.model import Model

MIN_SCORED = 500  # before a rate of alerts is judged
TRIAL_SCORED = 20_000  # after as many events a new model is no longer on trial
TOO_MANY, TOO_FEW = 5.0, 0.1  # times the expected number of alerts
SLACK = 20  # alerts more than that are no evidence yet
MIN_EXPECTED = 30  # alerts expected before their absence is evidence


class Serving:
    """The champion, and the model before it for as long as the champion is on trial.

    A new model is on trial for its first `TRIAL_SCORED` events: its rate of alerts must stay within `TOO_FEW` and
    `TOO_MANY` times what is expected, from the rate of the model before it and from its own budget.

    Example:
        >>> from tests.pipelines.live.live_scorer import Linear
        >>> from tests.pipelines.live.kill_stream import stream_named
        >>> serving = Serving(Linear(stream_named("s")))
        >>> serving.count(serving.champion, 1000, 10)
        >>> serving.verdict() is None
        True
    """

    def __init__(self, champion: Model) -> None:
        self.champion = champion
        self.previous: Model | None = None
        self.refused: dict[str, str] = {}  # digests of models that were returned, and why
        self.unusable: dict[str, str] = {}  # digests of wanted models that cannot be used, and why
        self.n_swaps = 0
        self.together = Together()
        self.shadow: Shadow | None = None  # is offered what was published
        self._lock = threading.Lock()
        self._n_scored = self._n_alerts = 0  # by the champion
        self._usual: float | None = None  # share of alerts of the model before

    def swap(self, model: Model, *, on_trial: bool = True) -> None:
        """Use another model from the next batch on."""
        with self._lock:
            if self._n_scored >= MIN_SCORED:
                self._usual = self._n_alerts / self._n_scored
            self.previous, self.champion = self.champion if on_trial else None, model
            self._n_scored = self._n_alerts = 0
            self.n_swaps += 1

    def adjust(self, model: Model) -> None:
        """Use the same model with another threshold from the next batch on. Its rate of alerts is counted anew."""
        with self._lock:
            if model.digest == self.champion.digest:
                self.champion, self._usual = model, None
                self._n_scored = self._n_alerts = 0

    def count(self, model: Model, n_scored: int, n_alerts: int) -> None:
        """Count published scores of a model; those that were decided with another threshold do not count."""
        with self._lock:
            if model is self.champion:
                self._n_scored += n_scored
                self._n_alerts += n_alerts
                if self._n_scored >= TRIAL_SCORED:
                    self.previous = None

    def verdict(self) -> str | None:
        """Why the champion must be returned; None if its rate of alerts is within the bounds, or not on trial."""
        with self._lock:
            expected = [rate for rate in (self._usual, self.champion.alert_rate) if rate]
            if self.previous is None or not expected or self._n_scored < MIN_SCORED:
                return None
            n, alerts = self._n_scored, self._n_alerts
            most, least = TOO_MANY * max(expected) * n + SLACK, TOO_FEW * min(expected) * n
            if alerts > most or (min(expected) * n >= MIN_EXPECTED and alerts < least):
                shares = " to ".join(f"{rate:.3%}" for rate in sorted(set(expected)))
                return f"{alerts} of {n} events raised an alert; expected are {shares}"
            return None

    def give_back(self, why: str) -> str | None:
        """Return to the previous model; the digest of the model that is refused from now on."""
        with self._lock:
            if self.previous is None:
                return None
            bad, self.champion, self.previous = self.champion.digest, self.previous, None
            self.refused[bad] = why
            self._n_scored = self._n_alerts = 0
            self.n_swaps += 1
            return bad
