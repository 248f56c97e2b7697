"""The command line: help with examples, and a user's slip told with its mend and exit code 2."""

import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from flows.cli import app, shipped_streams
from pipelines.contracts.stream_file import load
from tests.patience import HANG_S

FLOWS = ["ingest", "pretrain", "finetune", "promote", "backtest"]
COMMANDS = ["demo", "simulate", *FLOWS, "score", "alerts", "label", "reconcile", "recover"]


def unmask(*words: str, home: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the real command in a process of its own."""
    command = [sys.executable, "-m", "flows.cli", *words]
    env = {"UNMASK_HOME": str(home), "PATH": "/usr/bin:/bin", "COLUMNS": "200", **environment}
    return subprocess.run(command, capture_output=True, text=True, timeout=HANG_S, env=env, check=False)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(command: str) -> None:
    result = CliRunner().invoke(app, [command, "--help"])
    assert result.exit_code == 0
    assert f"unmask {command}" in result.output


def test_shipped_stream_files_load() -> None:
    assert {"payments", "handbook"} <= set(shipped_streams())
    for path in shipped_streams().values():
        assert load(path).features


def test_a_wrong_stream_file_is_told_with_line_value_and_mend(tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.toml"
    wrong.write_text('[stream]\nname = "x"\nevent_id = "id"\nevent_time = "at"\nentities = ["who"]\n[fields]\n'
                     'id = { type = "text" }\nat = { type = "time" }\nwho = { type = "txt" }\n')  # fmt: skip
    ran = unmask("reconcile", "--stream", str(wrong), home=tmp_path, KAFKA_BOOTSTRAP_SERVERS="127.0.0.1:9")
    assert ran.returncode == 2
    assert "line 9" in ran.stderr
    assert "'txt'" in ran.stderr
    assert "text" in ran.stderr
    assert "Traceback" not in ran.stderr


@pytest.mark.parametrize(
    ("words", "mend"),
    [
        (["reconcile"], "--stream"),
        (["reconcile", "--stream", "payments"], "unmask kafka start"),
        (["ingest", "--stream", "payments"], "unmask ui start"),
        (["score", "--stream", "payments", "--from", "yesterday"], "earliest or latest"),
        (["pretrain", "--stream", "payments", "--as-of", "soon"], "2018-07-01"),
    ],
)
def test_what_is_missing_is_told_with_how_to_give_it(words: list[str], mend: str, tmp_path: Path) -> None:
    ran = unmask(*words, home=tmp_path)
    assert ran.returncode == 2, ran.stderr
    assert mend in ran.stderr
    assert "Traceback" not in ran.stderr


def test_status_of_servers_that_do_not_run_is_exit_code_1(tmp_path: Path) -> None:
    assert unmask("kafka", "status", home=tmp_path).returncode == 1
    assert unmask("ui", "status", home=tmp_path).returncode == 1


def test_a_simulated_stream_can_be_written_as_parquet(tmp_path: Path) -> None:
    words = ("simulate", "--to", str(tmp_path / "data"), "--days", "3", "--customers", "50", "--terminals", "80")
    ran = unmask(*words, home=tmp_path)
    assert ran.returncode == 0, ran.stderr
    assert (tmp_path / "data" / "events.parquet").stat().st_size > 1000
