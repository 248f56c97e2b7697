"""The member of a consumer group."""

import threading
from collections.abc import Sequence
from contextlib import suppress

from confluent_kafka import OFFSET_END, Consumer, KafkaError, TopicPartition

from pipelines.errors import BrokerError, FencedError
from pipelines.kafka.confluent.opening import closed, opened
from pipelines.kafka.port import Assignment, Member
from pipelines.kafka.server import Server

LOOK_S = 0.1
MAX_POLL_MS = 60_000


class ConfluentMember(Member):
    """A group consumer whose partitions are all paused, polled in a thread of its own.

    librdkafka does not tell the generation of the group, so every change of the assignment counts as a newer one.
    """

    def __init__(self, server: Server, group: str, topic: str, *, instance_id: str | None, session_ms: int) -> None:
        self._group, self._instance_id = group, instance_id
        settings = {
            "group.id": group,
            "partition.assignment.strategy": "cooperative-sticky",
            "enable.auto.commit": False,
            "auto.offset.reset": "latest",
            "session.timeout.ms": session_ms,
            "heartbeat.interval.ms": min(3_000, session_ms // 4),
            "max.poll.interval.ms": MAX_POLL_MS,
            "queued.max.messages.kbytes": 64,
            "fetch.message.max.bytes": 1_024,
        }
        if instance_id is not None:
            settings["group.instance.id"] = instance_id
        self._assignment = Assignment(-1, frozenset())
        self._failure: BaseException | None = None
        self._is_stopping = threading.Event()
        self._consumer: list[Consumer] = [opened(server, Consumer, settings)]
        self._consumer[0].unassign()
        self._consumer[0].subscribe([topic], on_assign=self._gained, on_revoke=self._lost, on_lost=self._lost)
        self._thread = threading.Thread(target=self._run, name="member", daemon=True)
        self._thread.start()

    def assigned(self) -> Assignment:
        if self._failure is not None:
            raise self._failure
        return self._assignment

    def close(self) -> None:
        """Leave the group; a member with an instance id only ends, so that it can return within its session."""
        self._is_stopping.set()
        self._thread.join(timeout=5)
        consumer = self._consumer[0] if self._consumer else None
        if consumer is not None and not self._thread.is_alive():
            with suppress(Exception):
                consumer.close()
            del consumer
            closed(self._consumer)

    def _run(self) -> None:
        consumer = self._consumer[0]
        try:
            while not self._is_stopping.is_set():
                record = consumer.poll(LOOK_S)
                if record is not None and (error := record.error()) is not None:
                    self._check(error)
        except BaseException as error:
            self._failure = error

    def _check(self, error: KafkaError) -> None:
        if error.code() == KafkaError.FENCED_INSTANCE_ID or "fenced" in error.str().lower():
            raise FencedError(
                f"another member with the name {self._instance_id} has joined group {self._group}; give each scorer a "
                "name of its own (`unmask score --replica NAME`)"
            )
        if error.fatal() or error.code() in (
            KafkaError.GROUP_AUTHORIZATION_FAILED,
            KafkaError.TOPIC_AUTHORIZATION_FAILED,
        ):
            raise BrokerError(f"the membership in group {self._group} has ended: {error.str()}")

    def _gained(self, consumer: Consumer, partitions: Sequence[TopicPartition]) -> None:
        gained = [TopicPartition(p.topic, p.partition, OFFSET_END) for p in partitions]
        consumer.incremental_assign(gained)
        consumer.pause(gained)
        self._change(self._assignment.partitions | {p.partition for p in partitions})

    def _lost(self, consumer: Consumer, partitions: Sequence[TopicPartition]) -> None:
        with suppress(Exception):  # a lost assignment may be gone already
            consumer.incremental_unassign(list(partitions))
        self._change(self._assignment.partitions - {p.partition for p in partitions})

    def _change(self, partitions: frozenset[int]) -> None:
        self._assignment = Assignment(self._assignment.generation + 1, partitions)
