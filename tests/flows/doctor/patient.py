"""A stream that the doctor looks at, and the commands that it names."""

import json
import shlex
import uuid
from pathlib import Path

import pytest
from kafka import KafkaAdminClient, TopicPartition
from typer.testing import CliRunner

from flows.cli.root import app
from flows.doctor.examine import examine
from flows.doctor.finding import Finding, Level
from flows.doctor.sizing import Load
from flows.settings import Settings
from pipelines.contracts.stream import Stream
from pipelines.contracts.stream_file import parse
from pipelines.kafka import topics
from pipelines.kafka.connection import Connection
from pipelines.kafka.port import Message
from tests.pipelines.live.kill_stream import TEXTS

SERVERS = ("MLflow", "Prefect", "champion")


class Patient:
    """A stream file and a home of their own, named by the environment as a user does."""

    def __init__(self, kafka: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.environment = monkeypatch
        name = f"doctor-{uuid.uuid4().hex[:8]}"
        self.file = folder / f"{name}.toml"
        self.file.write_text(TEXTS["merged"].format(name=name))
        self.stream: Stream = parse(self.file.read_text())
        self.connection = Connection(kafka)
        for variable in ("MLFLOW_TRACKING_URI", "PREFECT_API_URL", "UNMASK_SNAPSHOTS", "UNMASK_STREAM"):
            monkeypatch.delenv(variable, raising=False)
        monkeypatch.setenv("UNMASK_HOME", str(folder / "home"))
        monkeypatch.setenv("KAFKA_BOOTSTRAP_SERVERS", kafka)

    @property
    def settings(self) -> Settings:
        return Settings()

    @property
    def words(self) -> str:
        return f"--stream {shlex.quote(str(self.file))}"

    def run(self, command: str) -> str:
        """Run a command of `unmask` in this process; its output."""
        program, *words = shlex.split(command)
        assert program == "unmask"
        return CliRunner().invoke(app, words).output

    def findings(self, load: Load | None = None) -> list[Finding]:
        return examine(self.settings, self.stream, self.words, load or Load())

    def problems(self, *, but: tuple[str, ...] = SERVERS) -> dict[str, Finding]:
        """What is not well, by its name; one of each. MLflow and Prefect do not run in most tests."""
        found = [one for one in self.findings() if one.level is not Level.OK and one.what not in but]
        return {one.what: one for one in found}

    def set(self, kind: str, **settings: str) -> None:
        """Change settings of a topic; ``_`` stands for a dot."""
        config = {name.replace("_", "."): value for name, value in settings.items()}
        with self.connection.asking() as admin:
            admin.change_settings([self.stream.topic(kind)], config)

    def obey(self, fix: str) -> None:
        """Carry out a fix: a command of ours, or one that changes settings of a topic, by what it says.

        The jars of the tests have no `kafka-configs.sh`.
        """
        program, *words = shlex.split(fix)
        if program == "unmask":
            self.run(fix)
            return
        assert program == "kafka-configs.sh"
        words.remove("--alter")
        said = dict(zip(words[::2], words[1::2], strict=True))
        assert said["--bootstrap-server"] == self.connection.bootstrap
        config = dict(pair.split("=") for pair in said["--add-config"].split(","))
        with self.connection.asking() as admin:
            admin.change_settings([said["--topic"]], config)

    def send(self, n: int) -> None:
        """Events, stored."""
        with self.connection.writer() as writer:
            for i in range(n):
                event = {"id": f"e{i}", "at": 1_700_000_000_000, "card": f"c{i % 7}", "amount": 5.0}
                key = event["card"]
                assert isinstance(key, str)
                writer.send(Message(self.stream.topic("events"), json.dumps(event).encode(), key.encode()))
            writer.flush()

    def delete_events(self) -> None:
        """As retention does, of every partition all but the last."""
        topic = self.stream.topic("events")
        admin = KafkaAdminClient(bootstrap_servers=self.connection.bootstrap)
        spans = topics.bounds(self.connection, [topic])
        admin.delete_records({TopicPartition(topic, p): end - 1 for (_, p), (_, end) in spans.items() if end > 1})
        admin.close()
