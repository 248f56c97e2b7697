"""A label goes where its event went."""

import uuid
from pathlib import Path

import pytest

from flows.serve.labels import send_label
from pipelines.kafka import topics
from pipelines.kafka.connection import Connection
from pipelines.kafka.port import Message
from pipelines.lake.ingest import ingest
from pipelines.lake.tables import Lake
from pipelines.play.producer import create_stream_topics
from tests.pipelines.payments import START_MS, event_message, payments_stream


@pytest.mark.parametrize("key", ["c1", "c2", "customer-3"])
def test_a_label_goes_to_the_partition_of_its_event(key: str, kafka: str, tmp_path: Path) -> None:
    connection, stream = Connection(kafka), payments_stream(f"label-{uuid.uuid4().hex[:8]}")
    create_stream_topics(connection, stream, n_partitions=4, append_time=False)
    with connection.writer() as writer:
        event = event_message("e1", key, START_MS)
        writer.send(Message(stream.topic("events"), event, key.encode(), timestamp_ms=START_MS))
        writer.flush()
    lake = Lake(tmp_path, stream)
    ingest(connection, stream, lake)
    send_label(connection, stream, lake, event_id="e1", label=1, source="test")
    spans = topics.bounds(connection, [stream.topic("labels")])
    (label,) = [r for batch in topics.read_between(connection, spans) for r in batch]
    assert label.key == key.encode()
    assert label.partition == topics.partition_of(key.encode(), 4)
    assert lake.read("events")["partition"].to_list() == [label.partition]
