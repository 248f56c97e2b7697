"""A cluster of three brokers: each topic on all of them, a write is stored by two, and any one may be killed."""

import os
import signal
import threading
from base64 import urlsafe_b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from kafka import KafkaAdminClient

from flows.local import kafka_server, processes
from flows.local.kafka_server import Broker, start_broker
from flows.local.processes import LOOPBACK
from tests.patience import wait_until
from tests.pipelines.kafka.link import with_settings

N_BROKERS = 3
ALONE = kafka_server._write_settings  # the settings of a broker that is alone
SETTINGS = {
    "min.insync.replicas": "2",
    "offsets.topic.replication.factor": "3",
    "transaction.state.log.replication.factor": "3",
    "transaction.state.log.min.isr": "2",
    "broker.session.timeout.ms": "6000",
    "controlled.shutdown.enable": "true",
}


class Cluster:
    """Brokers with the ids 1 to 3, each of them a controller, too."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        ports = [processes.free_port() for _ in range(2 * N_BROKERS)]
        self._ports, self._controllers = ports[:N_BROKERS], ports[N_BROKERS:]
        self.bootstrap = ",".join(f"{LOOPBACK}:{port}" for port in self._ports)
        self._brokers: dict[int, Broker] = {}

    def start(self, *ids: int) -> None:
        """Start brokers at the same time: the first two wait for each other."""
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(kafka_server, "_write_settings", self._write_settings)
            patched.setattr(kafka_server, "urlsafe_b64encode", lambda _: urlsafe_b64encode(bytes(16)))  # one cluster
            starting = [threading.Thread(target=self._start, args=(number,)) for number in ids]
            for thread in starting:
                thread.start()
            for thread in starting:
                thread.join()
        assert self._brokers.keys() >= {*ids}

    def _start(self, number: int) -> None:
        folder = self._folder / str(number)
        self._brokers[number] = start_broker(folder, port=self._ports[number - 1], log=print)

    def _write_settings(self, folder: Path, port: int) -> Path:
        number = self._ports.index(port) + 1
        voters = [f"{i}@{LOOPBACK}:{at}" for i, at in enumerate(self._controllers, 1)]
        of_cluster = {
            "node.id": str(number),
            "controller.quorum.voters": ",".join(voters),
            "listeners": f"PLAINTEXT://{LOOPBACK}:{port},CONTROLLER://{LOOPBACK}:{self._controllers[number - 1]}",
        }
        return with_settings(ALONE(folder, port), SETTINGS | of_cluster)

    def kill(self, number: int) -> None:
        """kill -9."""
        broker = self._brokers.pop(number)
        assert broker.process is not None
        os.kill(broker.process.pid, signal.SIGKILL)
        broker.stop()

    def leaders(self, topic: str) -> list[int]:
        """The broker that leads each partition of a topic, by the number of the partition."""
        return [one["leader_id"] for one in self._described(topic)]

    def coordinator_of(self, transactional_id: str) -> int:
        """The broker that coordinates the transactions of a producer."""
        n = len(self._described("__transaction_state"))
        code = 0
        for letter in transactional_id:  # Java's hash of a text
            code = (31 * code + ord(letter)) & 0xFFFFFFFF
        return self.leaders("__transaction_state")[(code & 0x7FFFFFFF) % n]

    def wait_until_in_sync(self, *topics: str) -> None:
        """Until every broker has everything: then any one can be killed."""
        wait_until(
            lambda: all(len(one["isr_nodes"]) == N_BROKERS for topic in topics for one in self._described(topic))
        )

    def _described(self, topic: str) -> list[dict]:
        admin = KafkaAdminClient(bootstrap_servers=self.bootstrap)
        try:
            [told] = admin.describe_topics([topic])
        finally:
            admin.close()
        return sorted(told["partitions"], key=lambda one: one["partition_index"])

    def stop(self) -> None:
        for broker in self._brokers.values():
            broker.stop()


@contextmanager
def cluster_of_three(folder: Path) -> Iterator[Cluster]:
    """A cluster of its own."""
    cluster = Cluster(folder)
    try:
        cluster.start(*range(1, N_BROKERS + 1))
        yield cluster
    finally:
        cluster.stop()
