"""What both adapters say about a topic is the same."""

import uuid

from pipelines.kafka import topics
from pipelines.kafka.confluent.client import Confluent
from pipelines.kafka.connection import Connection
from pipelines.kafka.topics import KEEP_FOR_EVER


def test_ids_and_settings_of_topics_are_the_same_for_both_adapters(kafka: str) -> None:
    names = [f"confluent-{uuid.uuid4().hex[:12]}" for _ in range(8)]  # ids with and without the highest bits
    plain, fast = Connection(kafka), Connection(kafka, adapter=Confluent)
    topics.create_topics(fast, dict.fromkeys(names, 1), config=KEEP_FOR_EVER)
    assert topics.topic_ids(fast, names) == topics.topic_ids(plain, names)
    with plain.asking() as one, fast.asking() as other:
        assert other.settings(names) == one.settings(names)
        assert other.topic_names() == one.topic_names()
        assert other.describe(names) == one.describe(names)
        slow, quick = one.cluster(), other.cluster()
    assert quick.n_brokers == slow.n_brokers == 1
    assert quick.settings == slow.settings
    assert int(quick.settings["transaction.max.timeout.ms"]) > 0
    assert slow.version is not None
