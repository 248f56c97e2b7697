"""Orders to running scorers: another model, the one before, another threshold or budget."""

import numpy as np
import polars as pl

from flows import moves
from flows.serve.live_scores import newest_scores
from flows.serve.model import model_of
from flows.settings import Settings
from models.score.budget import DAY_MS, Budget, threshold_for
from pipelines.contracts.stream import Stream
from pipelines.errors import UnmaskError
from pipelines.kafka import progress, topics
from pipelines.live.control import Order, Orders, order_of
from pipelines.live.moves import give
from pipelines.live.wanted import CHALLENGER, Wanted

MAX_SCORES = 500_000  # that a budget is computed from, the newest of the stream
MIN_SCORES = 1_000
MIN_ALLOWED = 5  # alerts in those scores: the threshold would otherwise depend on a few events


class Operator:
    """Gives orders on behalf of a person. Each names who gave it, when and why.

    Args:
        by: who gives the orders.
    """

    def __init__(self, settings: Settings, stream: Stream, *, by: str) -> None:
        self._settings, self._stream, self._by = settings, stream, by
        self._connection = settings.connection()

    def use(self, digest: str, *, why: str) -> str:
        """Use a model from the registry or the cache; returns what was done, in words.

        Raises:
            NoModelError: it cannot be loaded.
        """
        full = model_of(self._settings, self._stream, digest).digest
        self._give(order_of("use", full, why=why, by=self._by))
        return f"use model {full[:12]}. {moves.align_alias(self._settings, self._stream, full)}"

    def roll_back(self, *, why: str) -> str:
        """Go back to the model that was used before the present one; returns what was done, in words.

        Raises:
            UnmaskError: no former model is known.
        """

        def decide(wanted: Wanted) -> Order:
            if wanted.rollback_to is None:
                raise UnmaskError(
                    f"no model used before the present one of stream {self._stream.name} is known; name one: "
                    "`unmask use-model DIGEST`"
                )
            return order_of("rollback", wanted.rollback_to, why=why, by=self._by)

        model_of(self._settings, self._stream, decide(self._wanted()).digest)  # whether it can be loaded
        made = give(self._connection, self._stream, decide)
        assert made is not None
        return f"go back to model {made.digest[:12]}. {moves.align_alias(self._settings, self._stream, made.digest)}"

    def set_threshold(self, threshold: float | None, *, why: str, model: str | None = None) -> str:
        """Decide alerts with another threshold, or with the model's own (None); returns what was done, in words.

        Args:
            model: digest of the model for which it is; by default of the one in use.
        """
        if threshold is not None and not 0 <= threshold <= 1:
            raise UnmaskError(f"the threshold is {threshold:g}; scores, and so thresholds, are between 0 and 1")
        digest = model or self._in_use()
        value = None if threshold is None else float(np.float32(threshold))
        self._give(order_of("threshold", digest, why=why, by=self._by, threshold=value))
        return f"threshold {'of its own' if value is None else f'{value:.9g}'} for model {digest[:12]}."

    def set_budget(self, per_day: float, *, why: str) -> str:
        """Decide alerts with the threshold that allows so many alerts per day; returns what was done, in words.

        It is computed from what the model in use scored last: with it, at most so many of these events a day would
        have raised an alert.

        Raises:
            UnmaskError: the model has scored too few events.
            BudgetError: `per_day` is not greater than 0.
        """
        budget, digest = Budget(per_day=per_day), self._in_use()
        live = newest_scores(self._connection, self._stream, most=MAX_SCORES)
        live = live.filter(pl.col("model") == digest)
        scores, arrival_ms = live["score"].to_numpy(), live["arrival"].dt.epoch("ms").to_numpy()
        days = float(np.ptp(arrival_ms)) / DAY_MS if len(live) else 0.0
        if len(live) < MIN_SCORES or (days < 1 and int(per_day * days) < MIN_ALLOWED):
            raise UnmaskError(
                f"model {digest[:12]} has scored {len(live):,} events in {days * 24:.1f} h, which are too few to "
                f"find a threshold for {per_day:g} alerts a day: {MIN_SCORES:,} scores and {MIN_ALLOWED} alerts are "
                "needed; wait, or give one with `unmask set-threshold`"
            )
        threshold = threshold_for(budget, scores, arrival_ms)
        rate = float(np.mean(scores > np.float32(threshold)))
        order = order_of(
            "threshold", digest, why=why, by=self._by, threshold=threshold, alert_rate=rate, per_day=per_day
        )
        self._give(order)
        return (
            f"threshold {threshold:.9g} for model {digest[:12]}: {per_day:g} alerts a day, {rate:.3%} of the "
            f"{len(live):,} events that it scored in {days * 24:.1f} h."
        )

    def shadow(self, digest: str | None, *, why: str) -> str:
        """Let a model, what the challenger alias points to, or none (None) score in shadow; returns it in words.

        Raises:
            UnmaskError: the topic for it does not exist, or the model cannot be loaded.
        """
        if self._stream.topic("shadow") not in topics.topic_names(self._connection):
            raise UnmaskError(f"{self._stream.topic('shadow')} does not exist; run `unmask topics create`")
        if digest not in (None, CHALLENGER):
            digest = model_of(self._settings, self._stream, digest).digest
        self._give(order_of("shadow", digest or "", why=why, by=self._by))
        return "no model in shadow." if digest is None else f"model {digest[:12]} in shadow."

    def _give(self, order: Order) -> None:
        give(self._connection, self._stream, lambda _: order)

    def _wanted(self) -> Wanted:
        orders = Orders(self._connection, self._stream)
        try:
            return Wanted.by(orders.past())
        finally:
            orders.close()

    def _in_use(self) -> str:
        """The wanted model; where no order has named one, that of the newest scores."""
        if (wanted := self._wanted().digest) is not None:
            return wanted
        n_partitions = len(topics.partitions_of(self._connection, self._stream.topic("progress")))
        told = progress.all_progress(self._connection, self._stream, n_partitions).values()
        digests = {one.model for one in told if one is not None and one.n_scored}
        if len(digests) != 1:
            raise UnmaskError(
                f"no single model scores stream {self._stream.name} now"
                + (f" ({', '.join(sorted(one[:12] for one in digests))})" if digests else "; start the scorer first")
            )
        return digests.pop()
