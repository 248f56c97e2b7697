"""The whole path on a stream of logins, without labels: past events from a file, training, then live events."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
import numpy as np
import polars as pl
import pytest

from flows.local import processes
from flows.local.servers import Servers, drain_prefect
from flows.settings import Settings, registry_name
from pipelines.contracts.messages import Alert, Score, decode
from pipelines.contracts.stream import Stream
from pipelines.contracts.stream_file import load
from pipelines.kafka import topics
from pipelines.kafka.connection import Connection
from pipelines.kafka.port import Message
from pipelines.lake import audit
from pipelines.lake.feature_table import feature_table
from pipelines.lake.training_table import category_names
from pipelines.live.alert_records import features_of
from tests.flows.serve.served_by_mlflow import ask, served_by_mlflow
from tests.patience import wait_until

LOGINS = Path(__file__).parent / "logins.toml"
N_USERS, N_HISTORY, N_LIVE, N_ODD = 60, 6_000, 1_500, 12


@pytest.fixture
def home(tmp_path: Path, kafka: str, servers: Servers, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A home of its own, and the session's servers in the environment."""
    monkeypatch.setenv("UNMASK_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("KAFKA_BOOTSTRAP_SERVERS", kafka)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", servers.mlflow_uri)
    monkeypatch.setenv("PREFECT_API_URL", servers.prefect_api)
    monkeypatch.setenv("PREFECT_LOGGING_LEVEL", "WARNING")
    from prefect.settings import PREFECT_API_URL, temporary_settings

    with temporary_settings({PREFECT_API_URL: servers.prefect_api}):  # another test may have imported Prefect before
        yield tmp_path
        drain_prefect()


def logins(rng: np.random.Generator, n: int, first: int, *, odd: int = 0) -> list[dict[str, object]]:
    """Logins of users with habits; the last `odd` of them break the user's habit."""
    now_ms = int(time.time() * 1000) - n
    events = []
    for i in range(n):
        user = int(rng.integers(N_USERS))
        event: dict[str, object] = {
            "id": f"e{first + i}",
            "at": now_ms + i,
            "user": f"user-{user}",
            "kilobytes": round(float(rng.gamma(5.0, 2.0 * (1 + user % 5))), 2),
            "duration_s": round(float(rng.gamma(3.0, 20.0)), 1),
            "country": ["be", "de", "fr"][user % 3],
        }
        if i >= n - odd:
            event |= {"kilobytes": 5_000.0, "duration_s": 4_000.0}
        events.append(event)
    return events


def unmask(*words: str, ends_with: int = 0) -> str:
    """Run a command; returns what it prints, or its error."""
    ran = subprocess.run([sys.executable, "-m", "flows.cli", *words], capture_output=True, text=True, check=False)
    assert ran.returncode == ends_with, ran.stderr
    return ran.stderr if ends_with else ran.stdout


def send(connection: Connection, stream: Stream, events: list[dict[str, object]]) -> None:
    with connection.writer() as writer:
        for event in events:
            writer.send(Message(stream.topic("events"), json.dumps(event).encode(), str(event["user"]).encode()))
        writer.flush()


def published(connection: Connection, topic: str, kind: type[Score] | type[Alert]) -> list[Score]:
    spans = topics.bounds(connection, [topic])
    return [decode(r.value, kind) for batch in topics.read_between(connection, spans) for r in batch]


def test_a_stream_without_labels_goes_through_the_loop_and_scores_are_the_same_live_offline_and_alone(
    home: Path, kafka: str
) -> None:
    from flows.finetune import finetune
    from flows.ingest import ingest
    from flows.pretrain import pretrain
    from flows.promote import promote
    from flows.serve.model import champion, model_of

    stream_file = home / "logins.toml"
    topics = f"logins-{time.time_ns()}"
    stream_file.write_text(LOGINS.read_text().replace("[stream]\n", f'[stream]\ntopics = "{topics}"\n', 1))
    stream, settings, connection = load(stream_file), Settings(), Connection(kafka)
    rng = np.random.default_rng(7)
    history = pl.DataFrame(logins(rng, N_HISTORY, 0)).with_columns(pl.col("at").cast(pl.Datetime("ms", "UTC")))
    (home / "history").mkdir()
    history.write_parquet(home / "history" / "logins.parquet")
    unmask("topics", "create", "--stream", str(stream_file), "--partitions", "2", "--replay")
    unmask("simulate", "--stream", str(stream_file), "--data", str(home / "history"))
    ingest(stream_file)
    pretrain(stream_file)
    finetune(stream_file)
    assert promote(stream_file).promoted
    assert "stamps" in unmask("topics", "live", "--stream", str(stream_file))
    refused = unmask("simulate", "--stream", str(stream_file), "--data", str(home / "history"), ends_with=2)
    assert "past events would count as new ones" in " ".join(refused.split())

    command = [sys.executable, "-m", "flows.cli", "score", "--stream", str(stream_file), "--from", "latest"]
    scorer = processes.launch("scorer", command, folder=home, address="", env=dict(os.environ))
    status = settings.scorer_status(stream)
    try:
        scorer.wait_until_up(lambda: status.exists() and json.loads(status.read_text())["caught_up"])
        send(connection, stream, logins(rng, N_LIVE, N_HISTORY, odd=N_ODD))
        wait_until(
            lambda: json.loads(status.read_text())["scored"] >= N_LIVE,
            seen=lambda: json.loads(status.read_text())["scored"],
            alive=lambda: scorer.is_running,
        )
        os.kill(scorer.pid, signal.SIGTERM)
    finally:
        scorer.stop()

    scores = published(connection, stream.topic("scores"), Score)
    alerts = published(connection, stream.topic("alerts"), Alert)
    odd_ids = {f"e{N_HISTORY + N_LIVE - 1 - i}" for i in range(N_ODD)}
    assert len(scores) == len({s.event_id for s in scores}) == N_LIVE
    assert {a.event_id for a in alerts} == {s.event_id for s in scores if s.alert}
    assert len({a.event_id for a in alerts} & odd_ids) >= N_ODD // 2
    assert all(isinstance(a, Alert) and a.reasons for a in alerts)
    assert audit.reconcile(connection, stream).holds

    ingest(stream_file)
    lake, model = settings.lake(stream), champion(settings, stream)
    shutil.rmtree(settings.model_cache)  # then it comes from the registry
    skew = audit.skew_audit(
        lake, stream, settings.features(stream), models=lambda digest: model_of(settings, stream, digest)
    )
    assert skew.holds
    assert skew.checked == skew.equal == skew.n_model_checked == N_LIVE
    page = home / "backtest.html"
    tried = json.loads(unmask("backtest", "--stream", str(stream_file), "--json", "--out", str(page)))
    was_live = tried["live"]["champion"]
    assert was_live["is_equal"]
    assert tried["events"] == was_live["n_compared"] == was_live["n_scores_equal"] == N_LIVE  # bit for bit
    assert was_live["n_alerts"] == tried["outcomes"][0]["alerts"] == len(alerts)
    assert f"{N_LIVE:,} events were scored live: {N_LIVE:,} scores are equal bit for bit" in page.read_text()
    said = json.loads(unmask("explain", str(alerts[0].event_id), "--stream", str(stream_file), "--json"))
    assert said["verdict"] == "equal"
    assert len(said["reasons"]) == len(said["published_reasons"]) > 0
    with pytest.raises(audit.NoModelError, match="no version of 'logins-scorer' with the digest 0123"):
        model_of(settings, stream, "0123456789abcdef" * 4)
    with pytest.raises(audit.NoModelError, match="hexadecimal"):
        model_of(settings, stream, "../../etc")

    rows = feature_table(lake, stream, settings.features(stream))
    live = {(s.source.partition, s.source.offset): s.score for s in scores}
    picked = [i for i in range(len(rows.offset)) if (int(rows.partition[i]), int(rows.offset[i])) in live][::50]
    batch = model.score(rows.numeric[picked], rows.categorical[picked])
    for at, i in enumerate(picked):
        alone = model.score(rows.numeric[i : i + 1], rows.categorical[i : i + 1])[0]
        assert abs(alone - batch[at]) <= 1e-5
        assert abs(alone - live[(int(rows.partition[i]), int(rows.offset[i]))]) <= 1e-5
    served_by_mlflow_as_live(home, settings, stream, scores, alerts)


def served_by_mlflow_as_live(
    home: Path, settings: Settings, stream: Stream, scores: Sequence[Score], alerts: Sequence[Score]
) -> None:
    """`mlflow models serve` gives the scores, alerts and reasons that the live scorer published."""
    rows = feature_table(settings.lake(stream), stream, settings.features(stream))
    names = category_names(settings.lake(stream), stream)
    at = {(int(p), int(o)): i for i, (p, o) in enumerate(zip(rows.partition, rows.offset, strict=True))}
    events = [
        features_of(stream, rows.numeric[i], [names.get(int(one)) for one in rows.categorical[i]])
        for i in (at[score.source.partition, score.source.offset] for score in scores)
    ]
    raised = {alert.event_id: alert for alert in alerts if isinstance(alert, Alert)}
    model = f"models:/{registry_name(stream)}@champion"
    with served_by_mlflow(model, home, tracking_uri=settings.tracking_uri()) as url:
        found = ask(url, events)
        for alert, told in zip(raised.values(), ask(url, [alert.features for alert in raised.values()]), strict=True):
            assert told["alert"]
            assert told["score"] == pytest.approx(alert.score, abs=1e-5)
    assert len(found) == len(scores) == N_LIVE >= 1_000
    for score, told in zip(scores, found, strict=True):
        assert abs(told["score"] - score.score) <= 1e-5
        assert told["alert"] == score.alert
        reasons = [msgspec.structs.asdict(one) for one in raised[score.event_id].reasons] if score.alert else []
        assert told["reasons"] == [
            one | {name: pytest.approx(one[name], abs=1e-5) for name in ("surprise", "score_if_expected")}
            for one in reasons
        ]
