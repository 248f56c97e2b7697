"""The last sentence of a demo says what happened, and what surprises is explained by facts, only where it is so."""

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import polars as pl
import pytest

from flows.demo.figures import Figures, Quality
from flows.demo.live import LiveRun
from flows.demo.source import Source
from flows.streams.shipped import load
from pipelines.lake.audit import ModelCheck, Reconciliation, SkewAudit

DAY_MS = 86_400_000
FAST = {"p50": 40.0, "p99": 300.0}


def figures(**changed: object) -> Figures:
    live = LiveRun(scores={}, alerts=[], n_sent=31_483, rate=2_000.0, sending_s=15.7, scoring_s=15.9, latency_ms=FAST)
    books = Reconciliation(31_483, 31_014, 310, 159, pending=0, n_scored_since=31_014)
    skew = SkewAudit(31_014, 31_014, 1e-8, [ModelCheck("abc", 31_014, 31_014, 0)])
    quality = Quality(n_frauds=4, precision=0.61, recall=0.4, average_precision=0.36)
    made = Figures(
        "a broker",
        live,
        books,
        skew,
        quality,
        validation_ap=0.4,
        validation_ap_delayed=None,
        backtest={},
        seconds=100.0,
    )
    return replace(made, **changed)  # type: ignore[arg-type]


def source() -> Source:
    """Frauds on days 1 and 20; the live part are days 20 to 30; labels arrive after 7 days."""
    start = int(datetime(2026, 1, 1, tzinfo=UTC).timestamp() * 1000)
    days, customers, labels = [1, 20, 21, 22, 23], ["a", "a", "b", "c", "c"], [1, 1, 1, 0, 1]
    frame = pl.DataFrame(
        {
            "event_id": [f"e{i}" for i in range(5)],
            "time": pl.Series([start + day * DAY_MS for day in days]).cast(pl.Datetime("ms", "UTC")),
            "customer_id": customers,
            "terminal_id": [f"t{i}" for i in range(5)],
            "label": labels,
        }
    )
    return Source(frame, load("payments"), start + 20 * DAY_MS, start + 30 * DAY_MS)


def test_the_verdict_counts_refused_events_and_duplicates() -> None:
    found = figures()
    assert found.holds
    assert found.verdict() == (
        "All 31,483 events are accounted for (31,014 scored, 310 refused, 159 duplicates), and scores offline and live "
        "agree; 0 alerts."
    )


def test_a_missing_event_and_a_different_score_are_named() -> None:
    books = Reconciliation(31_483, 31_013, 310, 159, pending=0, n_problems={"missing": 1, "doubled": 0})
    skew = SkewAudit(31_013, 31_012, 0.5, [ModelCheck("abc", 31_013, 31_013, 1)])
    found = figures(books=books, skew=skew)
    assert not found.holds
    said = found.verdict()
    assert (
        "31,483 events were sent, 31,482 are accounted for (31,013 scored, 310 refused, 159 duplicates): 1 missing"
        in said
    )
    assert "31,012 have equal features, 31,013 were recomputed and 1 of those differ" in said
    assert "doubled" not in said


def test_what_does_not_surprise_is_not_explained() -> None:
    assert figures().explanations(source()) == []


def test_a_gap_between_validation_and_live_is_explained_by_labels_that_arrive_late() -> None:
    (said,) = figures(validation_ap=0.61, validation_ap_delayed=0.55).explanations(source())
    assert "know no fraud of the last 7 days; with labels that late, the validation period gives 0.55." in said
    assert "0.61 on the validation period and is 0.36 live. Labels arrive 7 days after their events" in said
    # Of four frauds, those of b and c have no fraud whose label had arrived.
    assert (
        "for 50% of the live frauds, no earlier fraud of the same customer_id or terminal_id was known at that time"
        in said
    )


@pytest.mark.parametrize(
    ("p50", "scoring_s", "explained"), [(9_000.0, 31.0, True), (40.0, 31.0, False), (9_000.0, 15.9, False)]
)
def test_the_latency_of_a_full_queue_is_explained_where_there_is_one(
    p50: float, scoring_s: float, explained: bool
) -> None:
    found = figures()
    live = replace(found.live, latency_ms={"p50": p50, "p99": 12_000.0}, scoring_s=scoring_s)
    said = replace(found, live=live).explanations(source())
    assert len(said) == explained
    if explained:
        assert "2,005 events/s were sent and 1,016 events/s were scored" in said[0]
        assert "unmask demo --rate 507" in said[0]


def test_a_machine_too_busy_to_send_at_the_rate_is_named_instead_of_a_queue() -> None:
    found = figures()
    live = replace(found.live, latency_ms={"p50": 994.0, "p99": 3_500.0}, sending_s=100.0, scoring_s=102.0)
    (said,) = replace(found, live=live).explanations(source())
    assert "2,000 events/s were to be sent, but only 315 events/s could be" in said


def test_the_summary_is_json_with_a_figure_for_each_outcome(tmp_path: Path) -> None:
    summary = figures().summary()
    assert (summary["events"], summary["refused"], summary["duplicates"]) == (31_483, 310, 159)
    assert summary["events_per_second"] == round(31_483 / 15.9, 1)
