"""A Kafka broker on this machine: `unmask kafka start|stop|status`.

These are tried in order: the broker in KAFKA_BOOTSTRAP_SERVERS; Apache Kafka (a single KRaft node) with an installed
Java or the one from pip; Apache Kafka in Docker. If one is not available, a log line says why within seconds.
"""

import hashlib
import json
import os
import shutil
import subprocess
import time
import uuid
from base64 import urlsafe_b64encode
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from flows.local import kafka_jars, processes
from flows.local.kafka_jars import Log
from flows.local.processes import LOOPBACK, Process, ServerError

Kind = Literal["external", "kafka", "docker"]

DOCKER_IMAGE = "apache/kafka:4.1.0"
PULL_S = 1_800.0  # for downloading the image, about 400 MB
FORMAT_S = 300.0  # writing an empty log takes seconds on a quiet machine

NODE_SETTINGS = {
    "process.roles": "broker,controller",
    "node.id": "1",
    "controller.listener.names": "CONTROLLER",
    "inter.broker.listener.name": "PLAINTEXT",
    "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
    "auto.create.topics.enable": "false",
    # One node: no replication.
    "offsets.topic.replication.factor": "1",
    "offsets.topic.num.partitions": "4",
    "transaction.state.log.replication.factor": "1",
    "transaction.state.log.min.isr": "1",
    "transaction.state.log.num.partitions": "4",
    "share.coordinator.state.topic.replication.factor": "1",
    "share.coordinator.state.topic.min.isr": "1",
    # Limits how long the open transaction of a killed scorer blocks readers.
    "transaction.max.timeout.ms": "60000",
    "transaction.abort.timed.out.transaction.cleanup.interval.ms": "1000",
    "group.initial.rebalance.delay.ms": "0",
    "log.retention.check.interval.ms": "5000",
    # The default buffer of the log cleaner is a quarter of our heap.
    "log.cleaner.dedupe.buffer.size": "16777216",
}

LOG4J = """\
rootLogger.level = INFO
rootLogger.appenderRefs = out
rootLogger.appenderRef.out.ref = out
appender.out.type = Console
appender.out.name = out
appender.out.layout.type = PatternLayout
appender.out.layout.pattern = %d %p %m (%c)%n
"""


@dataclass
class Broker:
    """A Kafka broker at the address `bootstrap`.

    Args:
        kind: "external" (not started by Unmask and never stopped), "kafka" or "docker".
        bootstrap: "host:port" for clients.
        version: description of the broker.
        folder: folder of its data and log.
        process: the child process, for "kafka".
        container: name of the container, for "docker".
    """

    kind: Kind
    bootstrap: str
    version: str
    folder: Path
    process: Process | None = None
    container: str | None = None

    @property
    def log(self) -> Path:
        """The log file of the broker."""
        return self.folder / "kafka.log"

    def stop(self) -> None:
        """Stop the broker if it was started by Unmask. Its data stays."""
        if self.process is not None:
            self.process.stop()
        if self.container is not None:
            _docker("stop", "--time", "10", self.container, timeout_s=30.0)
        (self.folder / "broker.json").unlink(missing_ok=True)


def start_broker(folder: Path, *, port: int | None = None, log: Log = print) -> Broker:
    """Start a broker in `folder`, or find the one that already runs there.

    Args:
        folder: folder of data, log and state file. A broker that is restarted uses the same data and port.
        port: TCP port on the loopback interface. None uses the last port of the folder, or a free one.
        log: called with one line for each step.

    Raises:
        ServerError: no broker can be started. The message says what to install.
    """
    external = os.environ.get("KAFKA_BOOTSTRAP_SERVERS")
    if external:
        log(f"Kafka: using {external} (KAFKA_BOOTSTRAP_SERVERS)")
        return Broker("external", external, "an external broker", folder)
    running = find_broker(folder)
    if running is not None:
        log(f"Kafka: {running.version} is already running at {running.bootstrap}")
        return running
    folder.mkdir(parents=True, exist_ok=True)
    port = port or processes.choose_port("kafka", folder)
    broker = _start_kafka(folder, port, log) or _start_docker(folder, port, log)
    if broker is None:
        raise ServerError(
            "no Kafka broker can be started on this machine; install Java 17 or newer and set KAFKA_HOME to a Kafka "
            "folder (`pip install 'unmask[kafka]'` installs Java and downloads Kafka), start Docker, or set "
            "KAFKA_BOOTSTRAP_SERVERS to an existing broker"
        )
    _write_state(broker)
    log(f"Kafka: {broker.version} listens on {broker.bootstrap}")
    return broker


def find_broker(folder: Path) -> Broker | None:
    """The broker that runs in `folder`, or None. It may have been started by another process."""
    try:
        state = json.loads((folder / "broker.json").read_text())
        kind, bootstrap, version, container = (state[k] for k in ("kind", "bootstrap", "version", "container"))
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None  # never started, or its file is incomplete after a crash
    process = processes.find("kafka", folder)
    if process is None and (container is None or not _container_runs(container)):
        return None
    return Broker(kind, bootstrap, version, folder, process, container)


def stop_broker(folder: Path) -> Broker | None:
    """Stop the broker that runs in `folder`. Return it, or None if none was running."""
    broker = find_broker(folder)
    if broker is not None:
        broker.stop()
    return broker


# --- Apache Kafka with a local Java


def _start_kafka(folder: Path, port: int, log: Log) -> Broker | None:
    java = kafka_jars.find_java(log)
    libs = kafka_jars.find_libs(log) if java else None
    if java is None or libs is None:
        return None
    program, java_version = java
    version = kafka_jars.kafka_version(libs)
    settings = _write_settings(folder, port)
    class_path = str(libs / "*")
    log4j = f"-Dlog4j2.configurationFile={folder / 'log4j2.properties'}"
    command = [program, "-Xmx512m", log4j, "-cp", class_path, "kafka.Kafka", str(settings)]
    try:
        if not (folder / "data" / "meta.properties").exists():
            _format(program, class_path, settings)
        process = processes.launch("kafka", command, folder=folder, address=f"{LOOPBACK}:{port}")
        process.wait_until_up(lambda: "Kafka Server started" in process.printed() and processes.accepts(port))
    except ServerError as error:
        log(f"Kafka: Apache Kafka {version} did not start: {error}")
        return None
    words = f"Apache Kafka {version} (KRaft, Java {java_version})"
    return Broker("kafka", process.address, words, folder, process)


def _write_settings(folder: Path, port: int) -> Path:
    controller = processes.free_port()
    settings = NODE_SETTINGS | {
        "controller.quorum.voters": f"1@{LOOPBACK}:{controller}",
        "listeners": f"PLAINTEXT://{LOOPBACK}:{port},CONTROLLER://{LOOPBACK}:{controller}",
        "advertised.listeners": f"PLAINTEXT://{LOOPBACK}:{port}",
        "log.dirs": (folder / "data").resolve().as_posix(),
    }
    (folder / "log4j2.properties").write_text(LOG4J)
    target = folder / "server.properties"
    target.write_text("".join(f"{name}={value}\n" for name, value in settings.items()))
    return target


def _format(java: str, class_path: str, settings: Path) -> None:
    """Format the folder with an empty KRaft log, if this was not done before."""
    # The first of the 22 characters is fixed: a leading "-" would read as an option.
    cluster = "u" + urlsafe_b64encode(uuid.uuid4().bytes).decode()[1:22]
    command = [java, "-Xmx128m", "-cp", class_path, "kafka.tools.StorageTool", "format"]
    command += ["-t", cluster, "-c", str(settings)]
    try:
        env = processes.inherited()
        subprocess.run(command, capture_output=True, text=True, timeout=FORMAT_S, check=True, env=env)
    except subprocess.CalledProcessError as error:
        said = (error.stdout + error.stderr).strip()[-500:]
        raise ServerError(f"formatting the Kafka folder failed: {said}") from error
    except subprocess.TimeoutExpired as error:
        raise ServerError(f"formatting the Kafka folder took more than {FORMAT_S:.0f} s") from error


# --- Apache Kafka in Docker


def _start_docker(folder: Path, port: int, log: Log) -> Broker | None:
    if shutil.which("docker") is None:
        log("Kafka: Docker is not installed")
        return None
    engine = _docker("version", "--format", "{{.Server.Version}}", timeout_s=5.0)
    if engine.returncode != 0:
        log(f"Kafka: the Docker engine does not answer ({_last_line(engine.stderr)})")
        return None
    name = "unmask-kafka-" + hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:12]
    settings = NODE_SETTINGS | {
        "controller.quorum.voters": "1@localhost:29093",
        "listeners": f"PLAINTEXT://:{port},CONTROLLER://:29093",
        "advertised.listeners": f"PLAINTEXT://{LOOPBACK}:{port}",
        "log.dirs": "/var/lib/kafka/data",
    }
    variables = [f"--env=KAFKA_{key.upper().replace('.', '_')}={value}" for key, value in settings.items()]
    where = [f"--publish={LOOPBACK}:{port}:{port}", f"--volume={name}:/var/lib/kafka/data"]
    log(f"Kafka: starting {DOCKER_IMAGE} in Docker (the first start downloads the image)")
    command = ["run", "--detach", "--rm", f"--name={name}", *where, *variables, DOCKER_IMAGE]
    ran = _docker(*command, timeout_s=PULL_S)
    if ran.returncode != 0:
        log(f"Kafka: Docker could not start it ({_last_line(ran.stderr)})")
        return None
    if not _wait_for_container(name, port):
        log(f"Kafka: the container {name} ended instead of starting")
        return None
    return Broker("docker", f"{LOOPBACK}:{port}", f"{DOCKER_IMAGE} in Docker", folder, container=name)


def _wait_for_container(name: str, port: int) -> bool:
    while _container_runs(name):
        if "Kafka Server started" in _docker("logs", name, timeout_s=10.0).stdout and processes.accepts(port):
            return True
        time.sleep(0.5)
    return False


def _container_runs(name: str) -> bool:
    seen = _docker("inspect", "--format", "{{.State.Running}}", name, timeout_s=5.0)
    return seen.stdout.strip() == "true"


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or ["no message"])[-1][:160]


def _docker(*arguments: str, timeout_s: float) -> subprocess.CompletedProcess[str]:
    command = ["docker", *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return subprocess.CompletedProcess(command, 1, "", str(error))


# --- the state file


def _write_state(broker: Broker) -> None:
    state = {
        "kind": broker.kind,
        "bootstrap": broker.bootstrap,
        "version": broker.version,
        "container": broker.container,
    }
    (broker.folder / "broker.json").write_text(json.dumps(state) + "\n")
