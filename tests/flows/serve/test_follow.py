"""Readers of scores and alerts: what they show, what they count, what they skip."""

import logging
from pathlib import Path

import pytest

from flows.serve.follow import n_alerted, newest, past_alerts, readable_alerts, readable_scores
from pipelines.contracts.alert_memory import Overflowed
from pipelines.contracts.delays import ScoringDelayed
from pipelines.contracts.messages import (
    Alert,
    AlertOverflow,
    AlertRecord,
    AlertUpdate,
    RecordSource,
    Score,
    encode,
    rfc3339,
)
from pipelines.kafka.port import Message
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
