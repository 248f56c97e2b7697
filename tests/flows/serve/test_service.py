"""The scorer as a process of its own: its log and its probes."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.flows.serve.test_probes import asked, metrics_at
from tests.patience import HANG_S, wait_until
from tests.pipelines.live.kill_stream import TEXTS
from tests.pipelines.live.rig import Rig

CANARY = "canary-4711"


@contextmanager
def served(rig: Rig, folder: Path, *words: str, **variables: str) -> Iterator[subprocess.Popen[bytes]]:
    """A scorer of the rig's stream in a process of its own; its log is in `log_of(folder)`."""
    stream_file = folder / "stream.toml"
    stream_file.write_text(TEXTS["merged"].format(name=rig.stream.name))
    command = [sys.executable, "-m", "tests.flows.serve.served", "score", "--stream", str(stream_file)]
    env = os.environ | {"KAFKA_BOOTSTRAP_SERVERS": rig.connection.bootstrap, "UNMASK_HOME": str(folder / "home")}
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([*command, *words], env=env | variables, stderr=log)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def log_of(folder: Path) -> str:
    return (folder / "log").read_text()


def port_of(folder: Path, process: subprocess.Popen[bytes]) -> int:
    """The port that the scorer says it serves on."""
    said: Sequence[str] = []

    def has_said() -> bool:
        nonlocal said
        said = re.findall(r"served on port (\d+)", log_of(folder))
        return bool(said)

    wait_until(has_said, alive=lambda: process.poll() is None)
    return int(said[-1])


def test_a_scorer_serves_probes_and_its_json_log_has_no_values_of_events(kafka: str, tmp_path: Path) -> None:
    rig = Rig(kafka, tmp_path)
    bad = [b'{"id": "%s", "at": 1, "card": 7}', b'{"id": "e", "at": "%s", "card": "c"}', b"%s", b'{"%s": 1}']
    with served(rig, tmp_path, "--from", "earliest", "--metrics-port", "0", UNMASK_LOG="json") as process:
        port = port_of(tmp_path, process)
        rig.send(20)
        rig.send_many([value % CANARY.encode() for value in bad], CANARY.encode())
        rig.send_raw(CANARY.encode(), CANARY.encode(), kind="labels")
        rig.wait_until_out()
        wait_until(lambda: asked(port, "/readyz")[0] == 200, alive=lambda: process.poll() is None)
        told = metrics_at(port)
        assert told["unmask_events_scored_total"] == 20
        assert sum(n for name, n in told.items() if name.startswith("unmask_events_refused_total")) == len(bad)
        process.send_signal(signal.SIGTERM)
        assert process.wait(HANG_S) == 0
    lines = [json.loads(line) for line in log_of(tmp_path).splitlines()]
    assert {"at", "level", "logger", "message"} <= lines[0].keys()
    assert any("caught up" in line["message"] for line in lines)
    assert CANARY not in log_of(tmp_path)
