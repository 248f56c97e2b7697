"""Readers of scores and alerts: what they show, what they count, what they skip."""

import logging
from pathlib import Path

import pytest
from msgspec.structs import replace

from flows.serve.follow import n_alerted, newest, past_alerts, readable_alerts, readable_scores
from pipelines.contracts.alert_memory import AlertMemory, CapDay, OpenGroup, Overflowed
from pipelines.contracts.delays import ScoringDelayed
from pipelines.contracts.messages import (
    Alert,
    AlertOverflow,
    AlertRecord,
    AlertUpdate,
    Progress,
    RecordSource,
    Review,
    Score,
    SuppressedAlert,
    encode,
    rfc3339,
)
from pipelines.contracts.suppression import Suppression
from pipelines.kafka.port import Message
from pipelines.lake.alert_audit import AlertCounts
from pipelines.record import Received
from tests.pipelines.live.rig import Rig


def test_what_is_no_message_of_ours_is_skipped_and_named(caplog: pytest.LogCaptureFixture) -> None:
    score = Score(
        event_id="e", score=0.5, alert=False, model="m", source=RecordSource("t", 0, 3), event_time="", arrival="",
        late_ms=0, out_of_order=False, features_hash="",
    )  # fmt: skip
    values = [b"", b"{", None, b"\xff", b"{}", encode(score), b"[" * 99_999]
    records = [Received("s.scores", 1, i, 0, None, value) for i, value in enumerate(values)]
    with caplog.at_level(logging.WARNING):
        assert list(readable_scores(records)) == [score]
    assert len(caplog.messages) == len(values) - 1
    assert "s.scores [1], offset 1, is not a score of Unmask" in caplog.messages[1]


def alert_at(ms: int, *, group: str | None = None) -> Alert:
    return Alert(
        event_id=f"e{ms}", score=0.9, alert=True, model="m", source=RecordSource("t", 0, ms), event_time="", late_ms=0,
        arrival=rfc3339(ms), out_of_order=False, features_hash="", alert_id=group or f"a{ms}", threshold=0.5,
        entities={}, reasons=[], score_if_all_expected=0.1, features={}, group_id=group, count=1 if group else None,
    )  # fmt: skip


def update_at(ms: int, group: str, count: int) -> AlertUpdate:
    return AlertUpdate(
        group_id=group, count=count, highest_score=0.9, closed=False, since=rfc3339(0), entities={"card": "c"},
        event_id=f"e{ms}", score=0.9, source=RecordSource("t", 0, ms), event_time="", arrival=rfc3339(ms),
    )  # fmt: skip


def overflow_at(ms: int, n: int) -> AlertOverflow:
    return AlertOverflow(
        day="1970-01-01", topic="t", partition=0, n_alerts=1, n_overflow=n, highest_score=0.9, arrival=rfc3339(ms),
        events=tuple(Overflowed(offset, 0.9) for offset in range(n)),
    )  # fmt: skip


def delay_at(ms: int, *, recovered: bool) -> ScoringDelayed:
    return ScoringDelayed(
        topic="t", partition=0, since=rfc3339(0), at=rfc3339(ms), lag_ms=70_000, highest_lag_ms=90_000,
        bound_ms=60_000, recovered=recovered, next_offset=7,
    )  # fmt: skip


def suppressed_at(ms: int) -> SuppressedAlert:
    told = Suppression(entity="card", id="c", until=rfc3339(9_999), by="ann", at=rfc3339(0), why="travel")
    return SuppressedAlert(
        kind="suppressed", event_id=f"e{ms}", score=0.9, alert=True, model="m", source=RecordSource("t", 0, ms),
        event_time="", late_ms=0, arrival=rfc3339(ms), out_of_order=False, features_hash="", alert_id=f"a{ms}",
        threshold=0.5, entities={"card": "c"}, suppression=told,
    )  # fmt: skip


def review_at(ms: int) -> Review:
    return Review(
        kind="review", event_id=f"e{ms}", score=0.1, alert=False, model="m", source=RecordSource("t", 0, ms),
        event_time="", late_ms=0, arrival=rfc3339(ms), out_of_order=False, features_hash="", review_id=f"r{ms}",
        threshold=0.5, entities={}, reasons=[], score_if_all_expected=0.1, features={},
    )  # fmt: skip


BURST: list[AlertRecord] = [
    alert_at(1),
    alert_at(2, group="g"),
    update_at(3, "g", 2),
    overflow_at(4, 3),
    alert_at(5, group="h"),
    update_at(6, "g", 4),
    update_at(7, "g", 7),
]


def test_the_newest_alerts_are_shown_once_with_the_newest_update_of_each_group() -> None:
    assert newest(BURST, 1) == [BURST[4], BURST[6]]
    assert newest(BURST, 2) == [BURST[1], BURST[3], BURST[4], BURST[6]]
    assert newest(BURST, 9) == [BURST[0], BURST[1], BURST[3], BURST[4], BURST[6]]
    assert newest(BURST, 0) == []
    assert newest(BURST[2:4], 5) == []
    delays = [delay_at(0, recovered=True), delay_at(3, recovered=False), delay_at(6, recovered=True)]
    assert newest([*delays, *BURST], 2) == [BURST[1], delays[1], BURST[3], BURST[4], delays[2], BURST[6]]


def test_every_alert_is_counted_alone_in_its_group_or_as_overflow() -> None:
    assert n_alerted(BURST) == 1 + 7 + 3 + 1
    assert n_alerted([*BURST[:2], delay_at(3, recovered=False)]) == 2
    assert n_alerted([*BURST[:2], suppressed_at(3), review_at(4)]) == 3


def test_reviews_are_shown_like_alerts_and_suppressed_ones_beside_them() -> None:
    quiet, review = suppressed_at(8), review_at(9)
    assert newest([*BURST, quiet, review], 2) == [BURST[4], BURST[6], quiet, review]
    assert newest([quiet, review], 1) == [review]


def test_the_audit_of_alerts_counts_each_score_over_the_threshold_once() -> None:
    sent: list[AlertRecord] = [*BURST, suppressed_at(8), review_at(9), delay_at(9, recovered=True)]
    records = [Received("s.alerts", 0, i, 0, None, value) for i, value in enumerate([*map(encode, sent), b"news"])]
    listed = OpenGroup("c", "h", 0, 3, 0.9, 1, 0.9, "e", 0.9, 6, 0, 0)  # two more than were published
    memory = AlertMemory((listed,), CapDay(0, pending=(Overflowed(20, 0.9), Overflowed(2, 0.9))))
    progress = Progress(
        next_offset=30, start=0, n_scored=0, n_refused=0, n_duplicates=0, n_out_of_turn=0, n_partitions=1,
        definition="", model="", owner="", origin={}, frontier=None, out_of_turn=[], alert_memory=memory,
    )  # fmt: skip
    counts = AlertCounts()
    counts.add(3 + 6 + 2 + 4 + 1, [*records, *records], progress)  # read twice: nothing is counted twice
    assert (counts.n_full, counts.n_counted, counts.n_listed, counts.n_suppressed) == (3, 6 + 2, 4, 1)
    assert counts.n_reviews == 1
    assert counts.holds
    assert "are NOT" in AlertCounts(2, 1).words()
    before = AlertCounts()  # what was published after the progress record was read
    before.add(2, records, replace(progress, next_offset=3, alert_memory=None))
    assert (before.n_full, before.n_counted, before.n_listed, before.n_suppressed) == (2, 0, 3, 0)


def test_what_is_no_record_about_alerts_is_skipped_and_named(caplog: pytest.LogCaptureFixture) -> None:
    sent = [*BURST, delay_at(8, recovered=False)]
    values = [*map(encode, sent), b'{"kind":"news"}', b"", b'{"kind":"update"}']
    records = [Received("s.alerts", 1, i, 0, None, value) for i, value in enumerate(values)]
    with caplog.at_level(logging.WARNING):
        assert list(readable_alerts(records)) == sent
    assert [message.partition(",")[2] for message in caplog.messages] == [
        f" offset {offset}, is not an alert of Unmask; skipped" for offset in (8, 9, 10)
    ]


def test_past_alerts_are_found_behind_any_number_of_updates(kafka: str, tmp_path: Path) -> None:
    rig = Rig(kafka, tmp_path)
    topic = rig.stream.topic("alerts")
    with rig.connection.writer() as writer:
        for p in (0, 1):
            for record in (alert_at(p), alert_at(10 + p), *(update_at(20 + n, f"g{p}", n) for n in range(2, 100))):
                writer.send(Message(topic, encode(record), None, p))
        writer.flush()
    found, ends = past_alerts(rig.connection, rig.stream, last=3)
    assert [record.arrival for record in found if isinstance(record, Alert)] == [rfc3339(ms) for ms in (1, 10, 11)]
    assert [record.count for record in found if isinstance(record, AlertUpdate)] == [99, 99]
    assert ends == {(topic, 0): 100, (topic, 1): 100}
    assert past_alerts(rig.connection, rig.stream, last=0) == ([], ends)
