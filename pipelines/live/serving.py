"""The model in use: lanes read it once for each batch, so a change takes effect between two batches."""

import threading

from pipelines.contracts.block import Block
from pipelines.live.shadow import Shadow
from pipelines.live.suppressions import Suppressions
from pipelines.live.together import Together
from pipelines.live.trial import Trial
from pipelines.model import Model

MIN_SCORED = 500  # before a rate of alerts is judged
TRIAL_SCORED = 20_000  # events whose rate of alerts is judged
TOO_MANY, TOO_FEW = 5.0, 0.1  # times the expected number of alerts
SLACK = 20  # alerts more than that are no evidence yet
MIN_EXPECTED = 30  # alerts expected before their absence is evidence


class Serving:
    """The champion, and the model before it for as long as the champion is on trial.

    A new model is on trial. For its first `TRIAL_SCORED` events its rate of alerts must stay within `TOO_FEW` and
    `TOO_MANY` times what is expected, from the rate of the model before it and from its own budget. And its scores must
    agree with those of the last model that passed (`Trial`). Until both are over, the model before it is `previous`.

    Example:
        >>> from tests.pipelines.live.live_scorer import Linear
        >>> from tests.pipelines.live.kill_stream import stream_named
        >>> serving = Serving(Linear(stream_named("s")))
        >>> serving.count(serving.champion, 1000, 10)
        >>> serving.verdict() is None
        True
    """

    def __init__(self, champion: Model) -> None:
        self.champion = self._passed = champion
        self.previous: Model | None = None
        self.refused: dict[str, str] = {}  # digests of models that were returned, and why
        self.unusable: dict[str, str] = {}  # digests of wanted models that cannot be used, and why
        self.n_swaps = 0
        self.together = Together()
        self.suppressions = Suppressions()
        self.shadow: Shadow | None = None  # is offered what was published
        self.trial: Trial | None = None  # so is this
        self._lock = threading.Lock()
        self._n_scored = self._n_alerts = 0  # by the champion
        self._usual: float | None = None  # share of alerts of the model before

    def swap(self, model: Model, *, on_trial: bool = True) -> None:
        """Use another model from the next batch on."""
        with self._lock:
            if self.previous is None and self._n_scored >= MIN_SCORED:
                self._usual = self._n_alerts / self._n_scored
            if on_trial:
                self._try(model, instead_of=self.champion)
            else:
                self._pass(model)
            self._n_scored = self._n_alerts = 0
            self.n_swaps += 1

    def _try(self, model: Model, *, instead_of: Model) -> None:
        if model.digest == self._passed.digest:
            self._pass(model)
        else:
            self.champion, self.previous, self.trial = model, instead_of, Trial(self._passed, model)

    def _pass(self, model: Model) -> None:
        self.champion = self._passed = model
        self.previous = self.trial = None

    def adjust(self, model: Model) -> None:
        """Use the same model with another threshold from the next batch on. Its rate of alerts is counted anew."""
        with self._lock:
            if model.digest == self.champion.digest:
                self.champion, self._usual = model, None
                if self.previous is None:
                    self._passed = model
                self._n_scored = self._n_alerts = 0

    def count(self, model: Model, n_scored: int, n_alerts: int) -> None:
        """Count published scores of a model; those that were decided with another threshold do not count."""
        with self._lock:
            if model is self.champion:
                self._n_scored += n_scored
                self._n_alerts += n_alerts
                if self.trial is not None and self.trial.is_over and self._n_scored >= TRIAL_SCORED:
                    self._pass(model)

    def offer(self, model: Model, rows: Block) -> None:
        """Let those that compare models have some published events; never waits."""
        if (shadow := self.shadow) is not None:
            shadow.offer(rows)
        if (trial := self.trial) is not None and model.digest == trial.new.digest:
            trial.offer(rows)

    def verdict(self) -> str | None:
        """Why the champion must be returned; None if it is not on trial, or nothing is against it so far."""
        with self._lock:
            return self._verdict()

    def _verdict(self) -> str | None:
        if self.trial is not None and self.trial.finding is not None:
            return self.trial.finding
        expected = [rate for rate in (self._usual, self.champion.alert_rate) if rate]
        if self.previous is None or not expected or not MIN_SCORED <= self._n_scored < TRIAL_SCORED:
            return None
        n, alerts = self._n_scored, self._n_alerts
        most, least = TOO_MANY * max(expected) * n + SLACK, TOO_FEW * min(expected) * n
        if alerts > most or (min(expected) * n >= MIN_EXPECTED and alerts < least):
            shares = " to ".join(f"{rate:.3%}" for rate in sorted(set(expected)))
            return f"{alerts} of {n} events raised an alert; expected are {shares}"
        return None

    def give_back(self) -> str | None:
        """If the verdict is against the champion, return to the model before it, whose trial begins anew.

        Where that one was returned meanwhile, by another replica, the last one that passed is used.

        Returns:
            The digest of the model that is refused from now on; `refused` says why. None if it stays.
        """
        with self._lock:
            why = self._verdict()
            if why is None or self.previous is None:
                return None
            bad = self.champion.digest
            back = self._passed if self.previous.digest in self.refused else self.previous
            self._try(back, instead_of=self._passed)
            self.refused[bad] = why
            self._n_scored = self._n_alerts = 0
            self.n_swaps += 1
            return bad
