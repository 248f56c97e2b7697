"""What a label means is one rule: in the fold, report by report, and in training, over all of them."""

import numpy as np
import polars as pl
from hypothesis import given
from hypothesis import strategies as st

from pipelines.features.id_log import hash_ids
from pipelines.features.reports import Reports
from pipelines.lake.labels import frauds_of

DAY_MS = 86_400_000
REPORTS = st.lists(st.tuples(st.sampled_from("abcde"), st.integers(0, 1), st.integers(0, 3)), max_size=60)


def fraud_counts(reports: list[tuple[str, int, int]], *, batch: int) -> dict[str, int]:
    """How many frauds the fold counts for each event, its reports taken in batches."""
    fold, counts, clock_ms = Reports(400 * DAY_MS, 1000, smallest=16), dict.fromkeys("abcde", 0), 10 * DAY_MS
    for at in range(0, len(reports), batch):
        part = reports[at : at + batch]
        clocks = clock_ms + np.cumsum([later for _, _, later in part])
        clock_ms = int(clocks[-1])
        changes = fold.changes(
            hash_ids([event_id for event_id, _, _ in part], b"key"),
            clocks.astype(np.int64),
            np.full(len(part), 9 * DAY_MS),
            np.array([label for _, label, _ in part], np.int8),
        )
        for (event_id, _, _), change in zip(part, changes.tolist(), strict=True):
            counts[event_id] += change
            assert counts[event_id] in (0, 1)
    return counts


@given(reports=REPORTS, batch=st.integers(1, 60))
def test_the_fold_and_training_say_the_same_of_every_event(reports: list[tuple[str, int, int]], batch: int) -> None:
    columns = {"event_id": [r[0] for r in reports], "label": [r[1] for r in reports]}
    frame = pl.DataFrame(columns, schema={"event_id": pl.String, "label": pl.Int8})
    frauds = set(frauds_of(frame["event_id"], frame["label"]))
    assert {event_id for event_id, n in fraud_counts(reports, batch=batch).items() if n} == frauds
    last = {event_id: label for event_id, label, _ in reports}
    assert frauds == {event_id for event_id, label in last.items() if label}


def test_a_repeated_report_changes_nothing_and_0_takes_back() -> None:
    assert fraud_counts([("a", 1, 0), ("a", 1, 1), ("b", 0, 0), ("b", 1, 0), ("b", 0, 1)], batch=2)["a"] == 1
    assert frauds_of(pl.Series(["a", "b", "b"]), pl.Series([1, 1, 0])).to_list() == ["a"]
