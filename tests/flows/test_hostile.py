"""Hostile surroundings: what is damaged, absent or hanging gives one sentence and the right exit code, in seconds."""

import subprocess
import sys
import uuid
from pathlib import Path

import pytest

from flows.local import processes
from flows.local.servers import Servers
from flows.settings import Settings, SettingsError
from models.ship import registry
from pipelines.contracts.stream_file import load
from pipelines.errors import StreamFileError
from pipelines.kafka.connection import Connection
from pipelines.play.producer import Replayer, create_stream_topics
from tests.flows.test_cli import unmask
from tests.patience import HANG_S
from tests.pipelines.payments import STREAMS, few_payments
from tests.silent_server import SilentServer

NOBODY = "127.0.0.1:9"


def message_of(ran: subprocess.CompletedProcess[str], code: int = 2) -> str:
    """What the command said: one sentence, no traceback."""
    assert ran.returncode == code, ran.stderr
    assert "Traceback" not in ran.stderr
    lines = [line for line in ran.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, ran.stderr
    return lines[0]


@pytest.mark.parametrize(
    ("variables", "says"),
    [
        (
            {"KAFKA_BOOTSTRAP_SERVERS": "junk"},
            "is 'junk'; it must be host:port, or several separated by commas",
        ),
        ({"KAFKA_SECURITY_PROTOCOL": "TLS"}, "it must be 'PLAINTEXT', 'SSL', 'SASL_PLAINTEXT' or 'SASL_SSL'"),
        ({"MLFLOW_TRACKING_URI": "mlflow"}, "MLFLOW_TRACKING_URI is 'mlflow'; it must be http://host:port"),
        ({"KAFKA_SECURITY_PROTOCOL": "SASL_SSL"}, "one of them is missing or empty"),
        ({"KAFKA_SASL_USERNAME": "scorer"}, "otherwise KAFKA_SASL_MECHANISM, _USERNAME and _PASSWORD are not used"),
        ({"KAFKA_SASL_PASSWORD_FILE": "/nowhere"}, "KAFKA_SASL_PASSWORD_FILE=/nowhere cannot be read"),
        ({"KAFKA_SASL_PASSWORD_FILE": "/"}, "KAFKA_SASL_PASSWORD_FILE=/ cannot be read (Is a directory)"),
        ({"KAFKA_SSL_CAFILE": "/nowhere"}, "KAFKA_SSL_CAFILE=/nowhere cannot be read"),
        ({"UNMASK_HOME": "/dev/null"}, "UNMASK_HOME=/dev/null is not a folder"),
    ],
)
def test_a_bad_setting_is_reported_with_its_value(
    variables: dict[str, str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {"UNMASK_HOME": str(tmp_path), "KAFKA_BOOTSTRAP_SERVERS": NOBODY} | variables
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError) as raised:
        Settings().connection()
    assert says in str(raised.value)


@pytest.mark.parametrize(
    ("content", "says"), [(None, "Is a directory"), ("#ä".encode("latin-1"), "is not UTF-8 (byte 1)")]
)
def test_what_is_not_a_stream_file_is_reported(content: bytes | None, says: str, tmp_path: Path) -> None:
    path = tmp_path / "stream.toml"
    path.mkdir() if content is None else path.write_bytes(content)
    with pytest.raises(StreamFileError) as raised:
        load(path)
    assert says in str(raised.value)


@pytest.mark.parametrize(
    ("words", "variables", "says"),
    [
        (["reconcile", "--stream", "payments"], {"KAFKA_BOOTSTRAP_SERVERS": "junk"}, "must be host:port"),
        (["simulate", "--data", "{damaged}"], {}, "cannot be read as Parquet"),
        (["demo", "--out", "{file}"], {}, "File exists"),
        (["kafka", "start"], {}, "broker.json: Not a directory; free some space, fix its permissions"),
    ],
)
def test_the_command_line_reports_it_in_one_sentence(
    words: list[str], variables: dict[str, str], says: str, tmp_path: Path
) -> None:
    damaged, file = tmp_path / "damaged", tmp_path / "file"
    damaged.mkdir()
    (damaged / "x.parquet").write_bytes(b"PAR1 and then nothing")
    file.touch()
    (tmp_path / "kafka").touch()
    given = [word.format(damaged=damaged, file=file) for word in words]
    assert says in message_of(unmask(*given, home=tmp_path, **variables))


def test_state_files_cut_short_are_no_servers(tmp_path: Path) -> None:
    for name in ("kafka/broker.json", "ui/mlflow.json", "ui/prefect.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text('{"pid": 12')
    assert unmask("kafka", "status", home=tmp_path).returncode == 1
    assert unmask("ui", "status", home=tmp_path).returncode == 1


@pytest.mark.parametrize("flow", ["ingest", "backtest"])
def test_a_flow_without_prefect_says_so(flow: str, silent_server: SilentServer, tmp_path: Path) -> None:
    words = [flow, "--stream", "payments", *(["--from", "2026-01-01"] if flow == "backtest" else [])]
    api = f"{silent_server}/api" if flow == "ingest" else f"http://{NOBODY}/api"
    ran = unmask(*words, home=tmp_path, PREFECT_API_URL=api)
    assert f"Prefect at {api} did not answer within 3 s" in message_of(ran)
    assert silent_server.n_asked <= 1  # by default the clients ask again and go on for minutes


def test_a_promotion_that_finds_a_silent_mlflow_says_so(
    servers: Servers, silent_server: SilentServer, tmp_path: Path
) -> None:
    given = {"PREFECT_API_URL": servers.prefect_api, "MLFLOW_TRACKING_URI": silent_server}
    said = message_of(unmask("promote", "--stream", "payments", home=tmp_path, **given))
    assert f"MLflow at {silent_server} did not answer within 3 s" in said


def test_an_ingest_does_its_work_while_mlflow_is_silent(
    kafka: str, servers: Servers, silent_server: SilentServer, tmp_path: Path
) -> None:
    stream_file = tmp_path / "stream.toml"
    topics = f"hostile-{uuid.uuid4().hex[:8]}"
    text = (STREAMS / "payments.toml").read_text()
    stream_file.write_text(text.replace("[stream]\n", f'[stream]\ntopics = "{topics}"\n', 1))
    stream, connection = load(stream_file), Connection(kafka)
    create_stream_topics(connection, stream, n_partitions=1, append_time=False)
    sent = Replayer(connection, stream, n_partitions=1).play(few_payments(days=2), label_delay_ms=0).n_events
    given = {"KAFKA_BOOTSTRAP_SERVERS": kafka, "PREFECT_API_URL": servers.prefect_api}
    ran = unmask("ingest", "--stream", str(stream_file), home=tmp_path, **given, MLFLOW_TRACKING_URI=silent_server)
    assert ran.returncode == 0, ran.stderr
    assert f"{sent:,} events" in ran.stdout
    assert f"MLflow at {silent_server} did not answer" in ran.stderr


def test_a_scorer_whose_pointer_to_the_last_model_is_damaged_says_so(tmp_path: Path) -> None:
    pointer = tmp_path / "models" / "payments-scorer.champion.json"
    pointer.parent.mkdir()
    pointer.write_text('{"version": 1')
    given = {"KAFKA_BOOTSTRAP_SERVERS": NOBODY, "MLFLOW_TRACKING_URI": f"http://{NOBODY}"}
    said = message_of(unmask("score", "--stream", "payments", "--from", "latest", home=tmp_path, **given))
    assert f"{pointer}, which names the last good copy, is damaged" in said


PREFECT_GOES_AWAY = """
import asyncio, os, threading
from pathlib import Path
from flows.cli import entry, training

host, port = os.environ["REAL_PREFECT"].split(":")
way_out = asyncio.new_event_loop()
held = []

async def copy(reader, writer):
    while data := await reader.read(1 << 16):
        writer.write(data)

async def forward(reader, writer):
    there, back = await asyncio.open_connection(host, int(port))
    held.extend((writer, back))
    await asyncio.gather(copy(reader, back), copy(there, writer), return_exceptions=True)

proxy = way_out.run_until_complete(asyncio.start_server(forward, "127.0.0.1", 0))
threading.Thread(target=way_out.run_forever, daemon=True).start()
os.environ["PREFECT_API_URL"] = f"http://127.0.0.1:{proxy.sockets[0].getsockname()[1]}/api"
training.report_to_prefect()
from prefect import flow

def cut():
    proxy.close()
    for writer in held:
        writer.transport.abort()

@flow(name="cut-off", validate_parameters=False)
def work(stream):
    way_out.call_soon_threadsafe(cut)

entry.app = lambda: training.run_flow(work, Path("x"))
entry.main()
"""


def test_a_flow_whose_prefect_goes_away_says_so(servers: Servers, tmp_path: Path) -> None:
    env = processes.inherited() | {"UNMASK_HOME": str(tmp_path), "REAL_PREFECT": servers.prefect.address}
    ran = subprocess.run(
        [sys.executable, "-c", PREFECT_GOES_AWAY], capture_output=True, text=True, env=env, timeout=HANG_S
    )
    assert "stopped answering (ConnectError); run it again" in message_of(ran)


DEFECT = """
import sys
from flows.cli import entry
def app():
    raise ZeroDivisionError("one by\\x1b[31m zero")
entry.app, sys.argv = app, ["unmask", "reconcile"]
entry.main()
"""


def test_our_own_defect_is_one_line_and_its_traceback_is_in_a_file(tmp_path: Path) -> None:
    def run(home: str) -> subprocess.CompletedProcess[str]:
        env = {"UNMASK_HOME": home, "PATH": "/usr/bin:/bin"}
        return subprocess.run([sys.executable, "-c", DEFECT], capture_output=True, text=True, env=env, check=False)

    home = tmp_path / "home"
    said = message_of(run(str(home)), code=4)
    assert "ZeroDivisionError: one by�[31m zero" in said
    assert f"its traceback is in {home}/defects.log" in said
    kept = (home / "defects.log").read_text()
    assert "Traceback (most recent call last)" in kept
    assert "\x1b" not in kept
    assert (home.stat().st_mode & 0o777, (home / "defects.log").stat().st_mode & 0o777) == (0o700, 0o600)

    without = run("/dev/null")
    assert without.returncode == 4
    assert "Traceback" in without.stderr


def test_the_home_is_for_its_owner_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def mode(home: Path) -> int:
        monkeypatch.setenv("UNMASK_HOME", str(home))
        Settings()
        return home.stat().st_mode & 0o777

    ours, others = tmp_path / "ours", tmp_path / "others"
    for home, inside in ((ours, "lake"), (others, "thesis")):
        (home / inside).mkdir(parents=True)
        home.chmod(0o755)
    assert mode(tmp_path / "deep" / "new") == 0o700
    assert mode(ours) == 0o700
    assert caplog.text == ""
    assert mode(others) == 0o755
    assert f"chmod 700 {others}" in caplog.text


def test_a_server_that_refuses_strangers_is_there(servers: Servers, silent_server: SilentServer) -> None:
    assert registry.answers(servers.mlflow_uri)
    assert registry.answers(servers.prefect_api)
    assert not registry.answers(f"{servers.prefect_api}/nowhere")
    assert not registry.answers(silent_server)
    assert not registry.answers("http://[")
