"""What the writer of kafka-python does beyond the port."""

import threading

from pipelines.kafka.connection import Connection
from pipelines.kafka.kafka_python.client import KafkaPython
from pipelines.kafka.port import Message
from tests.patience import wait_until
from tests.pipelines.kafka.link import Linked
from tests.pipelines.kafka.test_adapter import new_topic


def test_a_writer_that_is_closed_while_records_wait_leaves_no_thread_behind(linked: Linked) -> None:
    topic, before = new_topic(Connection(linked.broker.bootstrap)), set(threading.enumerate())
    writer = Connection(linked.bootstrap, adapter=KafkaPython).writer()
    writer.send(Message(topic, b"stored", partition=0))
    writer.flush()
    [thread] = [one for one in set(threading.enumerate()) - before if "producer" in one.name]
    linked.link.swallow()
    try:
        writer.send(Message(topic, b"waits", partition=0))
        writer.close()
        wait_until(lambda: not thread.is_alive())
    finally:
        linked.link.mend()
