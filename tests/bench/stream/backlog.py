"""The events in Kafka, fresh topics for what a system publishes, and the check of what it published."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import msgspec
import polars as pl
from confluent_kafka import Consumer, KafkaError, Producer, TopicPartition

from pipelines.contracts.stream import TOPICS
from pipelines.kafka import topics
from pipelines.kafka.connection import Connection
from pipelines.kafka.topics import KEEP_FOR_EVER
from pipelines.play.simulate import payments
from tests.bench.tables import BenchError

N_PARTITIONS, N_DAYS = 4, 60
START = datetime(2020, 1, 1, tzinfo=UTC)  # long ago: some backlogs are years long
_PER_CUSTOMER = 2.0 * N_DAYS  # events
_READ_S = 60.0  # without any record
_encode = msgspec.json.Encoder().encode


def customers_for(n_events: int) -> int:
    """Number of customers who make about so many payments in `N_DAYS`."""
    return max(20, round(1.15 * n_events / _PER_CUSTOMER))


def payments_of(n_events: int, n_customers: int, *, seed: int = 1) -> pl.DataFrame:
    """The first payments of so many customers, by rising time; each customer's go on for as long as it takes."""
    days = max(2, round(1.15 * n_events / (2.0 * n_customers)))
    frame = payments(seed=seed, n_customers=n_customers, n_terminals=n_customers // 2 + 20, days=days, start=START)
    if len(frame) < n_events:
        raise BenchError(f"{n_customers} customers made {len(frame)} payments in {days} days; {n_events} are needed")
    return frame.head(n_events)


def messages_of(frame: pl.DataFrame) -> Iterator[tuple[bytes, bytes]]:
    """Key and JSON of each payment; an empty cell is left out."""
    frame = frame.drop("label").with_columns(pl.col("time").dt.epoch("ms"))
    for row in frame.iter_rows(named=True):
        yield row["customer_id"].encode(), _encode({name: cell for name, cell in row.items() if cell is not None})


class Backlog:
    """The topics of one stream; `prefix` begins their names."""

    def __init__(self, bootstrap: str, prefix: str) -> None:
        self.bootstrap, self.prefix = bootstrap, prefix
        self.ends = [0] * N_PARTITIONS
        self._connection = Connection(bootstrap)
        self._partitions: dict[bytes, int] = {}
        stamped = KEEP_FOR_EVER | {"message.timestamp.type": "LogAppendTime"}
        inputs = {f"{prefix}.{kind}": N_PARTITIONS for kind in ("events", "labels")}
        if there := set(inputs) & topics.topic_names(self._connection):
            topics.delete_topics(self._connection, there)
        topics.create_topics(self._connection, inputs, config=stamped)

    def partition_of(self, key: bytes) -> int:
        """Partition of a key, as the Java client chooses it."""
        found = self._partitions.get(key)
        if found is None:
            found = self._partitions[key] = topics.partition_of(key, N_PARTITIONS)
        return found

    def write(self, frame: pl.DataFrame) -> None:
        """Append payments to the events."""
        producer = Producer(
            {"bootstrap.servers": self.bootstrap, "enable.idempotence": True, "linger.ms": 20, "log_level": 3}
        )
        for key, value in messages_of(frame):
            p = self.partition_of(key)
            self.ends[p] += 1
            while True:
                try:
                    producer.produce(f"{self.prefix}.events", value, key, p)
                    break
                except BufferError:
                    producer.poll(0.1)
        if left := producer.flush(_READ_S):
            raise BenchError(f"{left} events were not stored")

    def renew_outputs(self) -> None:
        """Empty topics for the next system."""
        single = {f"{self.prefix}.{kind}": 1 for kind in ("clock", "control")}
        outputs = {
            f"{self.prefix}.{kind}": N_PARTITIONS for kind in TOPICS if kind not in ("events", "labels")
        } | single
        if there := outputs.keys() & topics.topic_names(self._connection):
            topics.delete_topics(self._connection, there)
        topics.create_topics(self._connection, outputs, config=KEEP_FOR_EVER)

    def check(self, system: str, form: str) -> None:
        """Check that every event has one score among the committed records.

        Raises:
            BenchError: one has none, or several have.
        """
        n, names = 0, set[str]()
        for value in committed(self.bootstrap, f"{self.prefix}.scores"):
            if system == "bare":
                n += 1
            else:
                found = _ids(value, are_lines=form == "events" or system == "unmask")
                n += len(found)
                names.update(found)
        if not n == sum(self.ends) == (n if system == "bare" else len(names)):
            raise BenchError(
                f"{system} published {n:,} scores of {len(names):,} events; {sum(self.ends):,} events were sent"
            )


class _One(msgspec.Struct):
    event_id: str


class _Packed(msgspec.Struct):
    event_id: list[str]


_one, _packed = msgspec.json.Decoder(_One), msgspec.json.Decoder(_Packed)


def _ids(value: bytes, *, are_lines: bool) -> list[str]:
    """Event ids of a record: of Unmask, one JSON object on each line; of others packed, one with columns."""
    if are_lines:
        return [one.event_id for one in _one.decode_lines(value)]
    return _packed.decode(value).event_id


def committed(bootstrap: str, topic: str) -> Iterator[bytes]:
    """Every committed record of a topic."""
    settings: dict[str, Any] = {"group.id": "check", "enable.auto.commit": False, "isolation.level": "read_committed"}
    consumer = Consumer({"bootstrap.servers": bootstrap, "enable.partition.eof": True, **settings})
    try:
        consumer.assign([TopicPartition(topic, p, 0) for p in range(N_PARTITIONS)])
        open_partitions, until = set(range(N_PARTITIONS)), time.monotonic() + _READ_S
        while open_partitions:
            for record in consumer.consume(10_000, 0.2):
                until = time.monotonic() + _READ_S
                error = record.error()
                if error is None:
                    yield record.value() or b""
                elif error.code() == KafkaError._PARTITION_EOF:
                    open_partitions.discard(record.partition())
                else:
                    raise BenchError(f"{topic} cannot be read: {error}")
            if time.monotonic() > until:
                raise BenchError(f"{topic} sent nothing for {_READ_S:g} s; is a transaction open?")
    finally:
        consumer.close()
