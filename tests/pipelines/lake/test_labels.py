"""What a label means is one rule: in the fold, report by report, and in training, over all of them."""

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.contracts.stream import Labels
from pipelines.features.id_log import hash_ids
from pipelines.features.reports import Reports, strengths_of
from pipelines.lake.labels import valid_labels

DAY_MS = 86_400_000
Report = tuple[str, int, int, str]  # event, label, ms since the one before, source
EVENTS, SOURCES = st.sampled_from("abcde"), st.sampled_from(("bank", "ann", "rule", "other"))
REPORTS = st.lists(st.tuples(EVENTS, st.integers(0, 1), st.integers(0, 3), SOURCES), max_size=60)
RANKED = Labels(0, 0, sources=("bank", "ann", "rule"))


def counts(
    reports: list[Report], *, batch: int, both: bool, labels: Labels = RANKED
) -> tuple[dict[str, int], dict[str, int]]:
    """How many frauds and legitimate events the fold counts for each event, its reports taken in batches."""
    fold, clock_ms = Reports(400 * DAY_MS, 1000, both=both, smallest=16), 10 * DAY_MS
    frauds, legits = dict.fromkeys("abcde", 0), dict.fromkeys("abcde", 0)
    for at in range(0, len(reports), batch):
        part = reports[at : at + batch]
        clocks = clock_ms + np.cumsum([later for _, _, later, _ in part])
        clock_ms = int(clocks[-1])
        changes = fold.changes(
            hash_ids([event_id for event_id, _, _, _ in part], b"key"),
            clocks.astype(np.int64),
            np.full(len(part), 9 * DAY_MS),
            np.array([label for _, label, _, _ in part], np.int8),
            strengths_of(labels, [source for _, _, _, source in part]),
        )
        for (event_id, *_), (fraud, legit) in zip(part, changes.tolist(), strict=True):
            frauds[event_id] += fraud
            legits[event_id] += legit
            assert (frauds[event_id], legits[event_id]) in ((0, 0), (1, 0), (0, 1))
    return frauds, legits


@pytest.mark.parametrize("both", [False, True])
@given(reports=REPORTS, batch=st.integers(1, 60), labels=st.sampled_from((RANKED, Labels(0, 0))))
def test_the_fold_and_training_say_the_same_of_every_event(
    reports: list[Report], batch: int, both: bool, labels: Labels
) -> None:
    columns = {"event_id": [r[0] for r in reports], "label": [r[1] for r in reports], "source": [r[3] for r in reports]}
    frame = pl.DataFrame(columns, schema={"event_id": pl.String, "label": pl.Int8, "source": pl.String})
    valid = {event_id: label for event_id, label, _ in valid_labels(frame, labels).rows()}
    plain: dict[str, tuple[int, int]] = {}
    for event_id, label, _, source in reports:
        rank = labels.sources[::-1].index(source) + 1 if source in labels.sources else 0
        if rank >= plain.get(event_id, (0, 0))[0]:
            plain[event_id] = (rank, label)
    assert valid == {event_id: label for event_id, (_, label) in plain.items()}
    frauds, legits = counts(reports, batch=batch, both=both, labels=labels)
    assert {e for e, n in frauds.items() if n} == {e for e, label in valid.items() if label}
    assert {e for e, n in legits.items() if n} == ({e for e, label in valid.items() if not label} if both else set())


def test_a_weaker_source_replaces_nothing_and_an_equal_one_does() -> None:
    reports = [("a", 0, 0, "bank"), ("a", 1, 1, "ann"), ("b", 1, 0, "ann"), ("b", 0, 1, "ann"), ("b", 1, 1, "rule")]
    frauds, legits = counts(reports, batch=1, both=True)
    assert (frauds["a"], legits["a"], frauds["b"], legits["b"]) == (0, 1, 0, 1)
    frauds, _ = counts(reports, batch=1, both=False)
    assert (frauds["a"], frauds["b"]) == (0, 0), "a 0 holds against weaker ones also where only frauds are reported"
    confirmed = [("a", 1, 0, "rule"), ("a", 1, 0, "bank"), ("a", 0, 0, "ann"), ("c", 1, 0, "other"), ("c", 0, 0, "x")]
    frauds, _ = counts(confirmed, batch=1, both=False)
    assert (frauds["a"], frauds["c"]) == (1, 0), "who confirms a label makes it as strong; who is not listed is equal"


def test_a_repeated_report_changes_nothing_and_0_takes_back() -> None:
    reports = [("a", 1, 0, ""), ("a", 1, 1, ""), ("b", 0, 0, ""), ("b", 1, 0, ""), ("b", 0, 1, "")]
    frauds, legits = counts(reports, batch=2, both=False)
    assert (frauds["a"], frauds["b"], sum(legits.values())) == (1, 0, 0)
    _, legits = counts(reports, batch=2, both=True)
    assert (legits["a"], legits["b"], legits["c"]) == (0, 1, 0)
