"""The two clients as their documents show them, well set: no part of Unmask is in the way of `bare` and of the peers.

Both check every delivery: kafka-python by the future of each record, librdkafka by failing the commit of a transaction
with a lost record, and by a callback that is called for errors only.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Protocol

from tests.bench.stream.outputs import Columns, Out
from tests.bench.stream.task import Task

_READ = 10_000  # most records of one read
_WAIT_MS = 20
_DEADLINE_S = 30.0


class Plain(Protocol):
    """A consumer of the events and a transactional producer."""

    def read(self) -> Sequence[Any]:
        """Records that came since the last call."""
        ...

    def keys(self, records: Sequence[Any]) -> Iterable[tuple[bytes, int, int]]:
        """Key, partition and broker time (ms) of each record: all that `bare` looks at."""
        ...

    def columns(self, records: Sequence[Any]) -> Columns:
        """What a scorer needs of some records."""
        ...

    def commit(self, records: Iterable[Out]) -> None:
        """Write records in one transaction; raise if one was not stored."""

    def close(self) -> None:
        """Close both."""


class KafkaPython:
    """kafka-python; its CRC32-C in C is installed."""

    def __init__(self, task: Task) -> None:
        from kafka import KafkaConsumer, KafkaProducer, TopicPartition

        self._consumer = KafkaConsumer(
            bootstrap_servers=task.bootstrap,
            enable_auto_commit=False,
            isolation_level="read_committed",
            max_poll_records=_READ,
            max_partition_fetch_bytes=4 << 20,
            fetch_max_wait_ms=_WAIT_MS,
        )
        at = [TopicPartition(task.events_topic, p) for p in range(len(task.ends))]
        self._consumer.assign(at)
        for partition, end in zip(at, task.ends, strict=True):
            self._consumer.seek(partition, end if task.live else 0)
        self._producer = KafkaProducer(
            bootstrap_servers=task.bootstrap,
            transactional_id=f"plain-{task.topics}",
            acks="all",
            linger_ms=0 if task.live else 50,
            batch_size=1 << 20,
            retry_backoff_ms=5,
        )
        self._producer.init_transactions()

    def read(self) -> Sequence[Any]:
        return [record for batch in self._consumer.poll(timeout_ms=_WAIT_MS).values() for record in batch]

    def keys(self, records: Sequence[Any]) -> Iterable[tuple[bytes, int, int]]:
        return [(record.key, record.partition, record.timestamp) for record in records]

    def columns(self, records: Sequence[Any]) -> Columns:
        return Columns(
            [record.partition for record in records],
            [record.offset for record in records],
            [record.timestamp for record in records],
            [record.key for record in records],
            [record.value for record in records],
        )

    def commit(self, records: Iterable[Out]) -> None:
        send = self._producer.send
        self._producer.begin_transaction()
        futures = [
            send(topic, value=value, key=key, headers=headers, partition=partition, timestamp_ms=stamp_ms)
            for topic, value, key, partition, headers, stamp_ms in records
        ]
        self._producer.flush()
        for future in futures:
            future.get(timeout=_DEADLINE_S)
        self._producer.commit_transaction()

    def close(self) -> None:
        self._producer.close()
        self._consumer.close()


class Confluent:
    """confluent-kafka, librdkafka's client."""

    def __init__(self, task: Task) -> None:
        from confluent_kafka import Consumer, Producer, TopicPartition

        self._wait_s = 0.005 if task.live else 0.1  # `consume` waits this long for the whole number of records
        self._consumer = Consumer(
            {
                "bootstrap.servers": task.bootstrap,
                "group.id": f"plain-{task.topics}",
                "enable.auto.commit": False,
                "isolation.level": "read_committed",
                "auto.offset.reset": "error",
                "fetch.wait.max.ms": _WAIT_MS,
            }
        )
        at = [TopicPartition(task.events_topic, p, end if task.live else 0) for p, end in enumerate(task.ends)]
        self._consumer.assign(at)
        self._failed: list[Any] = []
        self._producer = Producer(
            {
                "bootstrap.servers": task.bootstrap,
                "transactional.id": f"plain-{task.topics}",
                "linger.ms": 0 if task.live else 50,
                "batch.size": 1 << 20,
                "delivery.report.only.error": True,
                "on_delivery": lambda error, _: self._failed.append(error),
            }
        )
        self._producer.init_transactions(_DEADLINE_S)

    def read(self) -> Sequence[Any]:
        records = self._consumer.consume(_READ, self._wait_s)
        for record in records:
            if record.error() is not None:
                raise RuntimeError(f"reading failed: {record.error()}")
        return records

    def keys(self, records: Sequence[Any]) -> Iterable[tuple[bytes, int, int]]:
        return [(record.key(), record.partition(), record.timestamp()[1]) for record in records]

    def columns(self, records: Sequence[Any]) -> Columns:
        return Columns(
            [record.partition() for record in records],
            [record.offset() for record in records],
            [record.timestamp()[1] for record in records],
            [record.key() for record in records],
            [record.value() for record in records],
        )

    def commit(self, records: Iterable[Out]) -> None:
        produce = self._producer.produce
        self._producer.begin_transaction()
        for topic, value, key, partition, headers, stamp_ms in records:
            produce(topic, value, key, partition, timestamp=stamp_ms or 0, headers=headers)
        self._producer.commit_transaction(_DEADLINE_S)
        if self._failed:
            raise RuntimeError(f"{len(self._failed)} records were not stored: {self._failed[0]}")

    def close(self) -> None:
        self._consumer.close()


def opened(task: Task) -> Plain:
    """The client of a task."""
    return KafkaPython(task) if task.client == "kafka-python" else Confluent(task)
