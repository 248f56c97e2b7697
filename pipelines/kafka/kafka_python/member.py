"""The member of a consumer group."""

import logging
import threading
from contextlib import suppress
from typing import Any

from kafka import KafkaConsumer, TopicPartition
from kafka.coordinator.assignors.cooperative_sticky import CooperativeStickyAssignor
from kafka.errors import FencedInstanceIdError

from pipelines.errors import FencedError
from pipelines.kafka.kafka_python.errors import broker_error, is_from_client
from pipelines.kafka.kafka_python.opening import opened
from pipelines.kafka.port import Assignment, Member
from pipelines.kafka.server import Server

log = logging.getLogger(__name__)

LOOK_MS = 100
MAX_POLL_MS = 60_000


class KafkaPythonMember(Member):
    """A group consumer whose partitions are all paused, polled in a thread of its own: a rebalance advances only there.

    The listeners of kafka-python run on its IO thread, where no offset may be asked for, so none is used.
    """

    def __init__(self, server: Server, group: str, topic: str, *, instance_id: str | None, session_ms: int) -> None:
        self._group, self._instance_id = group, instance_id
        self._consumer = opened(
            server,
            KafkaConsumer,
            group_id=group,
            group_instance_id=instance_id,
            partition_assignment_strategy=[CooperativeStickyAssignor],
            enable_auto_commit=False,
            auto_offset_reset="latest",
            session_timeout_ms=session_ms,
            heartbeat_interval_ms=min(3_000, session_ms // 4),
            max_poll_interval_ms=MAX_POLL_MS,
            max_partition_fetch_bytes=1,
            fetch_max_bytes=1,
        )
        self._assignment = Assignment(-1, frozenset())
        self._failure: BaseException | None = None
        self._tell_when_fenced()
        self._consumer.subscribe([topic])
        self._is_stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="member", daemon=True)
        self._thread.start()

    def assigned(self) -> Assignment:
        failure = self._failure
        if isinstance(failure, FencedInstanceIdError):
            raise FencedError(
                f"another member with the name {self._instance_id} has joined group {self._group}; give each scorer a "
                "name of its own (`unmask score --replica NAME`)"
            )
        if failure is not None:
            if is_from_client(failure):
                raise broker_error(f"the membership in group {self._group} has ended", failure) from failure
            raise failure
        return self._assignment

    def close(self) -> None:
        """Leave the group; a member with an instance id only ends, so that it can return within its session."""
        self._is_stopping.set()
        self._thread.join(timeout=5)
        with suppress(Exception):
            self._consumer.close(autocommit=False, timeout_ms=2_000)

    def _tell_when_fenced(self) -> None:
        """Keep the error of a heartbeat that was refused for another member of this name: kafka-python only logs it."""
        coordinator = self._consumer._coordinator
        send = coordinator._send_heartbeat_request

        async def telling() -> Any:
            try:
                return await send()
            except FencedInstanceIdError as error:
                self._failure = error
                raise

        coordinator._send_heartbeat_request = telling

    def _run(self) -> None:
        try:
            while not self._is_stopping.is_set():
                self._consumer.poll(timeout_ms=LOOK_MS, max_records=1)
                self._rejoin_if_lost()
                self._look()
        except BaseException as error:
            self._failure = error

    def _rejoin_if_lost(self) -> None:
        """Join again after a join that ended between two polls: kafka-python forgets its result and waits for ever.

        Its member then sends no heartbeats, and has no partitions.
        """
        coordinator = self._consumer._coordinator
        if coordinator.rejoining and not coordinator.need_rejoin():
            log.warning("group %s: the result of a rebalance was lost; joining again", self._group)
            coordinator.request_rejoin()

    def _look(self) -> None:
        partitions: set[TopicPartition] = self._consumer.assignment()
        self._consumer.pause(*(partitions - self._consumer.paused()))
        generation = self._consumer.group_metadata().generation_id
        self._assignment = Assignment(generation, frozenset(p.partition for p in partitions))
