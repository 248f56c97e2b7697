"""The consumers in the README run as they are printed there; only the stream and the address are a test's own."""

import json
import os
import shutil
import signal
import subprocess
import sys
from itertools import islice
from pathlib import Path

import pytest

from pipelines.lake.ingest import ingest
from pipelines.lake.tables import Lake
from tests.pipelines.live.rig import Rig, running
from tests.test_readme import BLOCKS


class Published(Rig):
    """A stream with scores and alerts in Kafka, and in the lake of a user's folder."""

    def __init__(self, bootstrap: str, folder: Path) -> None:
        super().__init__(bootstrap, folder)
        self.bootstrap = bootstrap
        self.send(20)
        for n in range(5):
            event = {"id": f"dear{n}", "at": 1_700_000_000_000 + n, "card": f"c{n}", "amount": 1e5}
            self.send_raw(json.dumps(event).encode(), f"c{n}".encode())
        with running(self.scorer()):
            self.wait_until_out()
        ingest(self.connection, self.stream, Lake(folder / ".unmask/lake", self.stream))
        self.records = [(record.value or b"").decode() for record in self.published("alerts")]
        # A busy machine may have published that scores were delayed.
        self.alerts = [alert for alert in map(json.loads, self.records) if "kind" not in alert]

    def printed(self, word: str) -> str:
        """The consumer in the README that contains a word."""
        (code,) = [block for _, block in BLOCKS if word in block]
        assert len(code.splitlines()) == 3
        return code.replace("localhost:9092", self.bootstrap).replace("logins", self.stream.name)

    def lines_of(self, command: list[str], n: int) -> list[str]:
        """The first n lines that a consumer prints, which goes on for ever."""
        environment = os.environ | {"PYTHONUNBUFFERED": "1"}
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment, start_new_session=True)
        assert process.stdout is not None
        try:
            return [line.rstrip("\n") for line in islice(process.stdout, n)]
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()


@pytest.fixture(scope="module")
def rig(kafka: str, tmp_path_factory: pytest.TempPathFactory) -> Published:
    rig = Published(kafka, tmp_path_factory.mktemp("consumers"))
    assert len(rig.alerts) >= 5
    return rig


def test_the_consumer_in_python_prints_every_alert(rig: Published) -> None:
    command = [sys.executable, "-c", rig.printed("KafkaConsumer(")]
    assert sorted(rig.lines_of(command, len(rig.records))) == sorted(rig.records)


@pytest.mark.skipif(not (shutil.which("kcat") and shutil.which("jq")), reason="kcat and jq are not installed")
def test_the_consumer_with_kcat_prints_every_alert(rig: Published) -> None:
    found = [json.loads(line) for line in rig.lines_of(["sh", "-c", rig.printed("kcat ")], len(rig.alerts))]
    wanted = [
        {name: alert[name] for name in ("event_id", "score", "entities")}
        | {"fields": [reason["field"] for reason in alert["reasons"]]}
        for alert in rig.alerts
    ]
    assert sorted(found, key=lambda row: row["event_id"]) == sorted(wanted, key=lambda row: row["event_id"])


def test_the_query_in_sql_counts_the_scores_and_alerts_of_the_lake(rig: Published) -> None:
    query = subprocess.run(
        [sys.executable, "-c", rig.printed("SQLContext(")], cwd=rig.folder, capture_output=True, text=True, check=True
    )
    row = [line for line in query.stdout.splitlines() if "linear" in line]
    assert [cell.strip() for cell in row[0].strip("│").split("┆")] == ["linear", str(rig.n_sent), str(len(rig.alerts))]
