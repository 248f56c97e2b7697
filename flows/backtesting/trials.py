"""Tries each model with each budget on a period."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flows.backtesting.budgets import Window, budget_of
from flows.backtesting.candidates import UNKNOWN_MS, Candidate, NothingToTestError
from flows.backtesting.cases import cases_of, warm_up_ms
from flows.backtesting.live_check import Live, LiveCheck
from flows.backtesting.period import Period, score
from flows.backtesting.result import Outcome
from flows.backtesting.review import NO_CASE, by_capacity, daily, review, totals
from pipelines.contracts.messages import rfc3339
from pipelines.contracts.stream import DAY_MS, Stream
from pipelines.model import Model

FEWEST = 1_000  # events that set a threshold

Report = Callable[[float, str], None]


@dataclass(frozen=True)
class Scored:
    """The scores of a model for rows of the feature table up to the end of the period, **shape (n,)**."""

    candidate: Candidate
    model: Model
    rows: range
    score: NDArray[np.float32]

    def of(self, rows: range) -> NDArray[np.float32]:
        """The scores of some of the rows."""
        return self.score[rows.start - self.rows.start : rows.stop - self.rows.start]


def scores(
    models: Mapping[Candidate, Model], stream: Stream, period: Period, window_ms: int, report: Report
) -> list[Scored]:
    """Score the period and what comes before it: the events that set thresholds and those that open groups of alerts.

    Args:
        window_ms: time before the period whose events set thresholds; 0 if no budget needs it.
    """
    rows = period.since(min(period.from_ms - window_ms, warm_up_ms(stream, period.from_ms)))
    found, n_done, n = [], 0, len(models) * len(rows)

    def show(k: int) -> None:
        report((n_done + k) / n, f"{n_done + k:,} of {n:,} scores")

    for candidate, model in models.items():
        found.append(Scored(candidate, model, rows, score(model, period.table, rows, progress=show)))
        n_done += len(rows)
    return found


def n_seen(candidate: Candidate, period: Period, live: Live) -> int:
    """How many events of the period the model may have seen in its training: those of before, unless it scored them
    live, because then it existed before them."""
    before = int(np.searchsorted(period.clock_ms, candidate.seen_until_ms))
    of_period = np.arange(period.rows.start, min(max(before, period.rows.start), period.rows.stop))
    return int((~np.isin(of_period, live.rows)).sum())


def refuse_seen(models: Sequence[Candidate], period: Period, seen: Mapping[str, int]) -> None:
    """Check that no model has seen events of the period.

    Args:
        seen: number of such events by digest.

    Raises:
        NothingToTestError: one has.
    """
    for one in models:
        if seen[one.digest]:
            latest = max(other.seen_until_ms for other in models)
            begin = "" if latest == UNKNOWN_MS else f"use --from {rfc3339(latest)} or later, "
            raise NothingToTestError(
                f"{one.why}: {seen[one.digest]:,} of the {len(period.rows):,} events of the period may have been in "
                f"its training. For an honest test, {begin}take a model trained with an earlier --as-of, or see "
                "figures that are too good with --allow-seen"
            )


def trial(
    stream: Stream,
    period: Period,
    scored: Scored,
    budget_text: str,
    *,
    window: Window | None,
    window_ms: int,
    capacity: int | None,
    seen: int,
) -> Outcome:
    """What a model would have done with a budget.

    Args:
        window: the events of before the period, if the budget needs them.
        seen: events of the period that the model may have seen.

    Raises:
        BudgetError: there are too few events to set a threshold from.
    """
    candidate, budget = scored.candidate, budget_of(budget_text)
    threshold, set_from = scored.model.threshold, "its training"
    if budget is not None:
        assert window is not None
        threshold, set_from = _threshold(budget_text, period, scored, window, window_ms)
    rows = period.since(warm_up_ms(stream, period.from_ms))
    earlier = period.rows.start - rows.start
    of_rows = scored.of(rows)
    case = cases_of(stream, period.table, rows, of_rows, of_rows > np.float32(threshold))[earlier:] - earlier
    case[case < 0] = NO_CASE  # of events without an alert, and of alerts in a group of before the period
    mine = scored.of(period.rows)
    found = review(mine, mine > np.float32(threshold), period.events.day, case=case, capacity=capacity)
    days = daily(period.events, found)
    return Outcome(
        model=candidate.name,
        version=candidate.version,
        digest=candidate.digest,
        budget=budget_text,
        threshold=threshold,
        set_from=set_from,
        n_seen=seen,
        days=days,
        totals=totals(period.events, found, days, mine),
        by_capacity=by_capacity(period.events, found),
    )


def _threshold(text: str, period: Period, scored: Scored, window: Window, window_ms: int) -> tuple[float, str]:
    """A threshold from the scores of before the period, of events that the head did not learn from if these suffice."""
    budget = budget_of(text)
    assert budget is not None
    from_ms, note = period.from_ms - window_ms, ""
    learned_ms = scored.candidate.learned_until_ms
    if learned_ms > from_ms:
        unlearned = range(period.since(learned_ms).start, period.rows.start)
        if len(unlearned) >= FEWEST:
            from_ms = learned_ms
        else:
            note = ", on which it was trained: its alerts may exceed the budget"
    rows = range(period.since(from_ms).start, period.rows.start)
    mine = window.since(from_ms, period.clock_ms[period.since(window.from_ms).start : period.rows.start])
    threshold = mine.threshold(budget, scored.of(rows))
    days = (period.from_ms - from_ms) / DAY_MS
    return threshold, f"{len(rows):,} events of the {days:.3g} days before the period{note}"


def live_checks(scored: Sequence[Scored], period: Period, live: Mapping[str, Live]) -> dict[str, LiveCheck]:
    """For each model by name, the comparison with its live scores."""
    return {
        one.candidate.name: live[one.candidate.digest].compared(
            one.model, period.table, period.rows.start, one.of(period.rows)
        )
        for one in scored
    }
