"""A lane when the broker stands still: nothing is committed in silence, nothing is lost or doubled."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from flows.local.kafka_server import Broker, start_broker
from pipelines.errors import BrokerError, FencedError
from pipelines.kafka import topics
from pipelines.kafka.connection import Connection
from pipelines.kafka.port import Message
from pipelines.kafka.topics import KEEP_FOR_EVER, last_record
from pipelines.kafka.writer import TransactionalWriter
from pipelines.live.outbox import MAX_ROWS, Outbox, OutboxBatch, Put
from tests.pipelines.live.kill_stream import stream_named
from tests.pipelines.live.scoring import Rig, at_passage, broken_events, running


@pytest.fixture(scope="module")
def own_broker(broker: Broker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """A broker that may be stopped and continued; only where the session's is a child process too."""
    if broker.kind != "kafka":
        pytest.skip("needs a broker of its own to stop for a while")
    own = start_broker(tmp_path_factory.mktemp("own-kafka"), log=lambda line: None)
    yield own
    own.stop()


def pid_of(own: Broker) -> int:
    assert own.process is not None
    return own.process.pid


def stand_still(own: Broker, seconds: float) -> None:
    """SIGSTOP now, SIGCONT later."""
    pid = pid_of(own)
    os.kill(pid, signal.SIGSTOP)
    threading.Timer(seconds, os.kill, (pid, signal.SIGCONT)).start()


def test_a_record_that_expires_never_leaves_a_commit_that_looks_well(own_broker: Broker) -> None:
    connection = Connection(own_broker.bootstrap)
    topics.create_topics(connection, {"expiry": 1}, config=KEEP_FOR_EVER)
    writer = TransactionalWriter(connection, "expiry")
    writer.commit([Message("expiry", b"before", partition=0)])

    def messages() -> Iterator[Message]:
        yield Message("expiry", b"stored", partition=0)
        time.sleep(0.5)  # it is sent, so the partition is in the transaction: what follows can only expire
        stand_still(own_broker, 12.0)
        yield Message("expiry", b"expired", partition=0)

    with pytest.raises(BrokerError):
        writer.commit(messages())
    writer.close()
    topics.wait_until_up(connection, deadline_s=30)
    again = TransactionalWriter(connection, "expiry")
    last = last_record(connection, "expiry", 0)
    assert last is not None
    assert last.value == b"before"
    again.commit([Message("expiry", b"after", partition=0)])
    again.close()


def test_a_commit_whose_outcome_is_unknown_costs_no_event_and_doubles_none(own_broker: Broker, tmp_path: Path) -> None:
    rig = Rig(own_broker.bootstrap, tmp_path)
    rig.send(50)
    fault = at_passage("after_flush", 2, lambda: stand_still(own_broker, 11.0))
    with running(rig.scorer(fault=fault)) as run:
        rig.wait_until_out()
        rig.send(50)
        rig.wait_until_out(deadline_s=90)
        assert sum(lane.n_rebuilt for lane in run.scorer.lanes) > 0
    assert sorted(score["event_id"] for score in rig.scores()) == sorted(f"e{n}" for n in range(100))


def test_an_older_writer_of_the_same_id_is_fenced(kafka: str) -> None:
    connection = Connection(kafka)
    topics.create_topics(connection, {"fencing": 1}, config=KEEP_FOR_EVER)
    older = TransactionalWriter(connection, "fencing")
    older.commit([Message("fencing", b"1", partition=0)])
    newer = TransactionalWriter(connection, "fencing")
    with pytest.raises(FencedError, match="another producer has taken over"):
        older.commit([Message("fencing", b"2", partition=0)])
    newer.commit([Message("fencing", b"3", partition=0)])
    for writer in (older, newer):
        writer.close()
    last = last_record(connection, "fencing", 0)
    assert last is not None
    assert last.value == b"3"


STREAM = stream_named("outbox")


def taken(outbox: Outbox, *, max_rows: int = MAX_ROWS) -> OutboxBatch:
    batch = outbox.take(max_rows=max_rows)
    assert batch is not None
    return batch


def test_rows_go_out_only_with_the_frontier_and_the_places_they_were_folded_under() -> None:
    outbox = Outbox()
    outbox.put(Put(broken_events(STREAM, 0, 2), [[1, 0, 0, 5, 1, 1, 9, 1]], {"events": [2, 0]}))
    outbox.put(Put(broken_events(STREAM, 2, 3), [], {"events": [3, 4]}))
    first = taken(outbox, max_rows=1)
    assert (first.rows.offset.tolist(), first.frontier, len(first.places)) == ([0, 1], {"events": [2, 0]}, 1)
    outbox.drop(first)
    second = taken(outbox)
    assert (second.rows.offset.tolist(), second.frontier, second.places) == ([2], {"events": [3, 4]}, [])
    outbox.drop(second)
    assert len(outbox) == outbox.n_bytes == 0


def test_places_are_told_where_no_row_goes_out_and_in_records_of_bounded_size() -> None:
    outbox = Outbox()
    for n in range(3):
        outbox.put(
            Put(broken_events(STREAM, 0, 0), [[1, 0, n, 5, 1, 1, 9, k] for k in range(MAX_ROWS)], {"events": [n]})
        )
    for n in range(3):
        batch = taken(outbox)
        assert (len(batch.rows), len(batch.places), batch.frontier) == (0, MAX_ROWS, {"events": [n]})
        outbox.drop(batch)
    assert len(outbox) == outbox.n_bytes == 0


def test_the_first_half_of_a_batch_may_go_alone_and_what_was_put_stays_in_order() -> None:
    outbox = Outbox()
    place = [1, 0, 0, 5, 1, 1, 9, 1]
    for end in (3, 6):
        outbox.put(Put(broken_events(STREAM, end - 3, end), [place], {"events": [end, 0]}))
    first, second = taken(outbox).halves()
    assert (first.rows.offset.tolist(), second.rows.offset.tolist()) == ([0, 1, 2], [3, 4, 5])
    assert (len(first.places), second.places) == (2, [])
    outbox.drop(first)
    outbox.put(Put(broken_events(STREAM, 6, 7), [], {"events": [7, 0]}))
    rest = taken(outbox)
    assert (rest.rows.offset.tolist(), rest.places, rest.frontier) == ([3, 4, 5, 6], [], {"events": [7, 0]})
    outbox.drop(rest)
    assert len(outbox) == outbox.n_bytes == 0
    assert outbox.take() is None
