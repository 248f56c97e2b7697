"""A lane when the broker stands still: nothing is committed in silence, nothing is lost or doubled."""

import os
import signal
import threading
from pathlib import Path

from flows.local.kafka_server import Broker
from pipelines.live.outbox import MAX_ROWS, Outbox, Put, Row
from pipelines.order import EVENT, Record
from tests.pipelines.kafka.link import Linked
from tests.pipelines.live.scoring import Rig, at_passage, running


def stand_still(own: Broker, seconds: float) -> None:
    """SIGSTOP now, SIGCONT later."""
    assert own.process is not None
    pid = own.process.pid
    os.kill(pid, signal.SIGSTOP)
    threading.Timer(seconds, os.kill, (pid, signal.SIGCONT)).start()


def test_a_commit_whose_outcome_is_unknown_costs_no_event_and_doubles_none(linked: Linked, tmp_path: Path) -> None:
    rig = Rig(linked.broker.bootstrap, tmp_path)
    rig.send(50)
    fault = at_passage("after_flush", 2, lambda: stand_still(linked.broker, 11.0))
    with running(rig.scorer(fault=fault)) as run:
        rig.wait_until_out()
        rig.send(50)
        rig.wait_until_out()
        assert sum(lane.n_rebuilt for lane in run.scorer.lanes) > 0
    assert sorted(score["event_id"] for score in rig.scores()) == sorted(f"e{n}" for n in range(100))


def row(offset: int) -> Row:
    return Row(Record(EVENT, 0, offset, 0, None, b"x"), 0, False)


def test_rows_go_out_only_with_the_frontier_and_the_places_they_were_folded_under() -> None:
    outbox = Outbox()
    outbox.put(Put([row(0), row(1)], [[1, 0, 0, 5, 1, 1, 9, 1]], {"events": [2, 0]}))
    outbox.put(Put([row(2)], [], {"events": [3, 4]}))
    first = outbox.take(max_rows=1)
    assert ([r.record.offset for r in first.rows], first.frontier, len(first.places)) == ([0, 1], {"events": [2, 0]}, 1)
    outbox.drop(first)
    second = outbox.take()
    assert ([r.record.offset for r in second.rows], second.frontier, second.places) == ([2], {"events": [3, 4]}, [])
    outbox.drop(second)
    assert len(outbox) == outbox.n_bytes == 0


def test_places_are_told_where_no_row_goes_out_and_in_records_of_bounded_size() -> None:
    outbox = Outbox()
    for n in range(3):
        outbox.put(Put([], [[1, 0, n, 5, 1, 1, 9, k] for k in range(MAX_ROWS)], {"events": [n]}))
    for n in range(3):
        batch = outbox.take()
        assert (batch.rows, len(batch.places), batch.frontier) == ([], MAX_ROWS, {"events": [n]})
        outbox.drop(batch)
    assert len(outbox) == outbox.n_bytes == 0
