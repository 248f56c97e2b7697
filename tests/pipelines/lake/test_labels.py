"""What a label means is one rule: in the fold, report by report, and in training, over all of them."""

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.features.id_log import hash_ids
from pipelines.features.reports import Reports
from pipelines.lake.labels import latest_labels

DAY_MS = 86_400_000
REPORTS = st.lists(st.tuples(st.sampled_from("abcde"), st.integers(0, 1), st.integers(0, 3)), max_size=60)


def counts(reports: list[tuple[str, int, int]], *, batch: int, both: bool) -> tuple[dict[str, int], dict[str, int]]:
    """How many frauds and legitimate events the fold counts for each event, its reports taken in batches."""
    fold, clock_ms = Reports(400 * DAY_MS, 1000, both=both, smallest=16), 10 * DAY_MS
    frauds, legits = dict.fromkeys("abcde", 0), dict.fromkeys("abcde", 0)
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
        for (event_id, _, _), (fraud, legit) in zip(part, changes.tolist(), strict=True):
            frauds[event_id] += fraud
            legits[event_id] += legit
            assert (frauds[event_id], legits[event_id]) in ((0, 0), (1, 0), (0, 1))
    return frauds, legits


@pytest.mark.parametrize("both", [False, True])
@given(reports=REPORTS, batch=st.integers(1, 60))
def test_the_fold_and_training_say_the_same_of_every_event(
    reports: list[tuple[str, int, int]], batch: int, both: bool
) -> None:
    columns = {"event_id": [r[0] for r in reports], "label": [r[1] for r in reports]}
    frame = pl.DataFrame(columns, schema={"event_id": pl.String, "label": pl.Int8})
    latest = dict(latest_labels(frame["event_id"], frame["label"]).rows())
    assert latest == {event_id: label for event_id, label, _ in reports}
    frauds, legits = counts(reports, batch=batch, both=both)
    assert {e for e, n in frauds.items() if n} == {e for e, label in latest.items() if label}
    assert {e for e, n in legits.items() if n} == ({e for e, label in latest.items() if not label} if both else set())


def test_a_repeated_report_changes_nothing_and_0_takes_back() -> None:
    reports = [("a", 1, 0), ("a", 1, 1), ("b", 0, 0), ("b", 1, 0), ("b", 0, 1)]
    frauds, legits = counts(reports, batch=2, both=False)
    assert (frauds["a"], frauds["b"], sum(legits.values())) == (1, 0, 0)
    _, legits = counts(reports, batch=2, both=True)
    assert (legits["a"], legits["b"], legits["c"]) == (0, 1, 0)
