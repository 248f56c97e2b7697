"""The chain of orders: writers never fork it, and whatever is changed afterwards is found."""

import json
import logging
import threading
import time
import uuid
from dataclasses import dataclass

import pytest

from pipelines.errors import BrokerError
from pipelines.kafka import topics
from pipelines.kafka.connection import Connection
from pipelines.kafka.port import Adapter, Message
from pipelines.kafka.topics import KEEP_FOR_EVER
from pipelines.live.chain import FIRST, Chain, append, hash_of, records_of
from pipelines.live.control import Orders, order_of, send_order
from pipelines.live.moves import give
from pipelines.record import Received
from tests.pipelines.kafka.adapters import ADAPTERS
from tests.pipelines.live.kill_stream import stream_named

N_WRITERS, N_EACH = 3, 4


@dataclass
class Topic:
    connection: Connection
    name: str

    def append(self, text: str) -> bool:
        """Append a record of its own."""
        made = lambda _, head: json.dumps({"text": text, "previous": head}).encode()  # noqa: E731
        return append(self.connection, self.name, self.name, made)

    def records(self) -> list[Received]:
        return records_of(self.connection, self.name)


@pytest.fixture(params=list(ADAPTERS.values()), ids=list(ADAPTERS))
def topic(kafka: str, request: pytest.FixtureRequest) -> Topic:
    adapter: Adapter = request.param
    made = Topic(Connection(kafka, adapter=adapter), f"chain-{uuid.uuid4().hex[:8]}")
    topics.create_topics(made.connection, {made.name: 1}, config=KEEP_FOR_EVER)
    return made


def test_writers_at_the_same_time_never_follow_the_same_record(topic: Topic) -> None:
    failures: list[BaseException] = []

    def write(writer: int) -> None:
        try:
            for n in range(N_EACH):
                assert topic.append(f"{writer}-{n}")
        except BaseException as error:
            failures.append(error)

    writers = [threading.Thread(target=write, args=(writer,)) for writer in range(N_WRITERS)]
    for each in writers:
        each.start()
    for each in writers:
        each.join()
    assert not failures
    found = topic.records()
    texts = [json.loads(record.value or b"")["text"] for record in found]
    assert sorted(texts) == sorted(f"{writer}-{n}" for writer in range(N_WRITERS) for n in range(N_EACH))
    chain = Chain.of(found)
    assert (chain.n_chained, chain.breaks, chain.head) == (len(texts), [], hash_of(found[-1]))


def test_nothing_is_appended_if_what_must_come_before_it_fails(topic: Topic) -> None:
    topic.append("a")

    def fail() -> None:
        raise OSError("no")

    with pytest.raises(OSError, match="no"):
        append(topic.connection, topic.name, topic.name, lambda *_: b"{}", before_commit=fail)
    assert not append(topic.connection, topic.name, topic.name, lambda *_: None)
    topic.append("b")
    assert [json.loads(record.value or b"")["text"] for record in topic.records()] == ["a", "b"]
    with pytest.raises(BrokerError, match="does not exist"):
        append(topic.connection, "no-such-topic", topic.name, lambda *_: b"{}")


def chained(*texts: str) -> list[Received]:
    """Records of a chain without a broker."""
    found: list[Received] = []
    for text in texts:
        value = {"text": text, "previous": hash_of(found[-1]) if found else FIRST}
        found.append(Received("t", 0, 2 * len(found), 0, None, json.dumps(value).encode()))
    return found


def test_a_record_changed_left_out_put_in_or_deleted_is_found() -> None:
    good = chained("a", "b", "c", "d")
    assert not Chain.of(good).breaks
    changed = good[1]._replace(value=(good[1].value or b"").replace(b'"b"', b'"x"'))
    foreign = Received("t", 0, 3, 0, None, b'{"text":"e"}')
    assert [at for at, _ in Chain.of([good[0], changed, *good[2:]]).breaks] == [4]
    assert [at for at, _ in Chain.of([good[0], *good[2:]]).breaks] == [4]
    assert [at for at, _ in Chain.of([*good[:2], foreign, *good[2:]]).breaks] == [3, 4]
    assert Chain.of(good[1:]).breaks == [(2, "the records before it are gone")]


def test_records_of_a_version_that_did_not_chain_them_are_an_unproven_beginning() -> None:
    old = [Received("t", 0, n, 0, None, b'{"text":"old"}') for n in range(3)]
    value = json.dumps({"text": "a", "previous": hash_of(old[-1])}).encode()
    chain = Chain.of([*old, Received("t", 0, 3, 0, None, value)])
    assert (chain.n_unchained, chain.n_chained, chain.breaks) == (3, 1, [])


def test_orders_of_a_broken_chain_hold_and_it_is_told_once(kafka: str, caplog: pytest.LogCaptureFixture) -> None:
    stream, connection = stream_named(f"test-{uuid.uuid4().hex[:8]}"), Connection(kafka)
    topics.create_topics(connection, {stream.topic("control"): 1}, config=KEEP_FOR_EVER)
    send_order(connection, stream, order_of("use", "a", why="test", by="ann"))
    with connection.writer() as writer:
        for name in "bc":
            value = f'{{"kind":"use","digest":"{name}","why":"","by":"eve","at":""}}'.encode()
            writer.send(Message(stream.topic("control"), value, None, 0))
        writer.flush()
    began = time.monotonic()
    made = give(connection, stream, lambda wanted: order_of("use", "d", why=f"not {wanted.digest}", by="ann"))
    print(f"an order is given within {time.monotonic() - began:.2f} s")
    assert made is not None
    assert (made.before, made.why) == ("c", "not c")
    orders = Orders(connection, stream)
    with caplog.at_level(logging.WARNING):
        assert [order.digest for order in orders.past()] == ["a", "b", "c", "d"]
        orders.new()
    assert sum("it names no record before it" in message for message in caplog.messages) == 1
    orders.close()
