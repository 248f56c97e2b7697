"""Whatever a failing link does, what leaves an adapter is an answer or an error of our own."""

import random
import threading
from collections.abc import Callable, Iterator

from pipelines.errors import BrokerError
from pipelines.kafka import topics
from pipelines.kafka.connection import Connection
from pipelines.kafka.port import Adapter, Message
from pipelines.kafka.topics import KEEP_FOR_EVER
from tests.pipelines.kafka.link import Linked
from tests.pipelines.kafka.test_adapter import new_topic


def ask_everything(connection: Connection, topic: str) -> Iterator[Callable[[], object]]:
    """Every way into the adapter."""
    yield lambda: topics.topic_names(connection)
    yield lambda: topics.topic_ids(connection, [topic])
    yield lambda: topics.stamps_appends(connection, topic)
    yield lambda: topics.bounds(connection, [topic])
    yield lambda: topics.last_record(connection, topic, 0)
    yield lambda: topics.create_topics(connection, {topic: 1}, config=KEEP_FOR_EVER)
    yield lambda: topics.note_group(connection, topic, {(topic, 0): 1})
    yield lambda: topics.group_positions(connection, topic)

    def read_on() -> None:
        with connection.reader({(topic, 0): 0}) as reader:
            for _ in range(20):
                reader.poll()
                reader.ends()
                reader.n_partitions(topic)
                reader.hold({(topic, 0)})
                reader.hold(())

    def write_one() -> None:
        with connection.writer() as writer:
            writer.send(Message(topic, b"x", partition=0))
            writer.flush(timeout_s=2.0)

    def write_together() -> None:
        with connection.transactional_writer(topic) as writer:
            writer.commit([Message(topic, b"x", partition=0)])

    yield from (read_on, write_one, write_together)


def test_over_a_failing_link_none_but_our_own_errors_leave_the_adapter(linked: Linked, adapter: Adapter) -> None:
    over_link = Connection(linked.bootstrap, adapter=adapter)
    topic, rng, done = new_topic(Connection(linked.broker.bootstrap)), random.Random(2), threading.Event()

    def flap() -> None:
        while not done.wait(rng.uniform(0.02, 0.6)):
            rng.choice((linked.link.cut, linked.link.cut, linked.link.swallow))()
            done.wait(rng.uniform(0.02, 0.6))
            linked.link.mend()

    flapping = threading.Thread(target=flap)
    flapping.start()
    n_errors = 0
    try:
        for _ in range(2):
            for ask in ask_everything(over_link, topic):
                try:
                    ask()
                except BrokerError:
                    n_errors += 1
        while not n_errors:  # with luck every question fell between two failures
            try:
                topics.bounds(over_link, [topic])
            except BrokerError:
                n_errors += 1
    finally:
        done.set()
        flapping.join()
        linked.link.mend()
