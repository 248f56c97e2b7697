"""Storms on a real broker: lanes that fail and take-overs publish what one pass over the scores would."""

import time
from collections import Counter
from datetime import datetime
from pathlib import Path

import msgspec
import pytest
from msgspec.structs import replace

from flows.serve.follow import n_alerted, readable_alerts
from flows.serve.status import status_of
from pipelines.contracts.alert_memory import AlertMemory
from pipelines.contracts.messages import Alert, AlertOverflow, AlertRecord, AlertUpdate, Score, decode
from pipelines.contracts.stream import StormRules
from pipelines.kafka.progress import all_progress, read_progress
from pipelines.lake.audit import reconcile
from pipelines.live import storms
from pipelines.live.storms import FullAlert, Raised, Storm
from tests.patience import wait_until
from tests.pipelines.live.rig import N_PARTITIONS, Rig, Running, at_passage, running

RULES = StormRules(within_ms=500, per_day=12)
Record = AlertRecord | FullAlert


def send(rig: Rig, card: str, n: int, *, amount: float) -> None:
    values = [
        msgspec.json.encode({"id": f"e{rig.n_sent + i}", "at": int(time.time() * 1000), "card": card, "amount": amount})
        for i in range(n)
    ]
    rig.send_many(values, card.encode())


def millis(text: str) -> int:
    return round(datetime.fromisoformat(text).timestamp() * 1000)


def one_pass(rig: Rig, partition: int) -> tuple[list[Record], AlertMemory | None]:
    """What the published scores of a partition give in one piece."""
    storm, out = Storm(rig.stream, AlertMemory(), partition=partition, n_partitions=N_PARTITIONS), list[Record]()
    key_of = {(r.partition, r.offset): (r.key or b"").decode() for r in rig.published("events")}
    for record in rig.published("scores"):
        score = decode(record.value, Score)
        if record.partition == partition:
            at_ms = millis(score.arrival)
            if score.alert:
                entity = key_of[partition, score.source.offset]
                out += storm.admit(Raised(score.source.offset, score, entity, millis(score.event_time), at_ms))
            out += storm.pass_time(at_ms)
    return out, storm.memory


def alert_records(rig: Rig) -> list[AlertRecord]:
    return list(readable_alerts(rig.published("alerts")))


def n_pending_in(rig: Rig) -> int:
    found = all_progress(rig.connection, rig.stream, N_PARTITIONS).values()
    return sum(record.alert_memory.n_pending for record in found if record and record.alert_memory)


def test_failed_lanes_and_take_overs_publish_each_burst_once(
    kafka: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storms, "MAX_LISTED", 4)
    rig = Rig(kafka, tmp_path)
    rig.stream = replace(rig.stream, storms=RULES)

    def fail() -> None:
        raise ZeroDivisionError("the process dies here")

    for point in ("before_flush", "after_flush", "before_outbox_drop"):
        run = Running(rig.scorer(fault=at_passage(point, 4, fail)))
        while run.is_alive:
            send(rig, "c0", 3, amount=1e5)
            send(rig, f"c{rig.n_sent % 5}", 1, amount=1e5)
        run.join()
        assert isinstance(run.error, ZeroDivisionError), run.error
    with running(rig.scorer()) as run:
        rig.wait_until_out()
        for card in ("c0", "c1", "c2", "c3"):  # in both partitions
            send(rig, card, 20, amount=1e5)

        def all_kinds_came() -> bool:
            send(rig, f"c{rig.n_sent % 5}", 1, amount=5.0)
            records = alert_records(rig)
            return any(isinstance(r, AlertOverflow) for r in records) and any(
                isinstance(r, AlertUpdate) and r.closed for r in records
            )

        wait_until(all_kinds_came, seen=lambda: rig.n_sent // 500)
        rig.wait_until_out()
        wait_until(lambda: status_of(run.scorer)["alerts_pending"] == n_pending_in(rig))

    n_marked = sum(score["alert"] for score in rig.scores())
    for p in range(N_PARTITIONS):
        records = list(readable_alerts([r for r in rig.published("alerts") if r.partition == p]))
        seen = [FullAlert(r.source.offset, r.group_id) if isinstance(r, Alert) else r for r in records]
        progress = read_progress(rig.connection, rig.stream, p)
        assert progress is not None
        assert (seen, progress.alert_memory) == one_pass(rig, p)
    assert n_alerted(alert_records(rig)) + n_pending_in(rig) == n_marked > 20
    found = reconcile(rig.connection, rig.stream)
    assert found.holds, found.words()
    assert (found.alerts.n_over, found.alerts.unchecked) == (n_marked, 0)
    kinds = Counter(type(record) for record in alert_records(rig))
    assert 2 <= kinds[Alert] <= 24  # of two days, if one ends meanwhile
    assert kinds[Alert] + kinds[AlertUpdate] + kinds[AlertOverflow] < n_marked
