"""Pretrain, fine-tune, promote and backtest on a lake of purchases, with real MLflow and Prefect."""

import json
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from safetensors.numpy import load_file

from flows import verdict
from flows.encoder import NoEncoderError, find
from flows.gate import Figures
from flows.lineage import time_of
from flows.local.servers import Servers, drain_prefect
from flows.settings import Settings, registry_name
from models.fit.finetune import FinetuneConfig
from models.fit.leaks import LeakError
from models.fit.pretrain import PretrainConfig
from models.ship import registry
from pipelines.contracts.messages import rfc3339
from pipelines.contracts.stream import Stream
from pipelines.contracts.stream_file import load
from pipelines.errors import UnmaskError
from pipelines.kafka.topics import KEEP_FOR_EVER, create_topics
from tests.patience import HANG_S

DAY_MS = 86_400_000
START_MS = 1_700_000_000_000 // DAY_MS * DAY_MS
DAYS, N = 30, 3_000
END_MS = START_MS + DAYS * DAY_MS


def at(time_ms: int) -> datetime:
    return datetime.fromtimestamp(time_ms / 1000, UTC)


END = at(END_MS)
MIDDLE_MS = START_MS + 24 * DAY_MS
MIDDLE, AFTER_MIDDLE = rfc3339(MIDDLE_MS), rfc3339(START_MS + 25 * DAY_MS)
BEFORE = {"as_of": MIDDLE, "encoder_as_of": MIDDLE}
GOOD = {"as_of": rfc3339(END_MS), "encoder_as_of": rfc3339(END_MS)}
STREAM = """
[stream]
name = "{name}"
event_id = "id"
event_time = "at"
entities = ["card"]
[fields]
id = {{ type = "text" }}
at = {{ type = "time" }}
card = {{ type = "text" }}
amount = {{ type = "number", min = 0 }}
channel = {{ type = "category" }}
[labels]
maturity = "{maturity}"
[[features]]
entity = "card"
field = "amount"
windows = ["all"]
stats = ["mean", "ratio"]
[alerts]
budget = {{ rate = 0.05 }}
[report]
segments = ["channel"]
value = "amount"
"""
PERSON = """
[promotion]
approval = "person"
max_alerts = 20
max_drift = 10
min_reasons = 0
"""


@dataclass(frozen=True)
class Unmask:
    """The flows without retries, in a home of its own."""

    home: Path
    pretrain: Callable[..., str]
    finetune: Callable[..., int]
    promote: Callable[..., Any]
    backtest: Callable[..., Any]


@pytest.fixture
def unmask(tmp_path: Path, servers: Servers, kafka: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Unmask]:
    """The session's servers in the environment, and short schedules."""
    monkeypatch.setenv("UNMASK_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("KAFKA_BOOTSTRAP_SERVERS", kafka)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", servers.mlflow_uri)
    monkeypatch.setenv("PREFECT_API_URL", servers.prefect_api)
    monkeypatch.setenv("PREFECT_LOGGING_LEVEL", "CRITICAL")
    # Prefect reads its settings when it is imported, here or before by another test
    from prefect.settings import PREFECT_API_URL, temporary_settings

    from flows import backtest as backtest_flow
    from flows import finetune as finetune_flow
    from flows import pretrain as pretrain_flow
    from flows import promote as promote_flow

    short = PretrainConfig(width=32, max_steps=60, min_steps=60, batch=256)
    monkeypatch.setattr(pretrain_flow, "PretrainConfig", lambda: short)
    monkeypatch.setattr(
        finetune_flow,
        "FinetuneConfig",
        lambda budget, maturity_ms: FinetuneConfig(budget=budget, maturity_ms=maturity_ms, n_trees=20),
    )
    with temporary_settings({PREFECT_API_URL: servers.prefect_api}):
        yield Unmask(
            tmp_path,
            pretrain_flow.pretrain.with_options(retries=0),
            finetune_flow.finetune.with_options(retries=0),
            promote_flow.promote.with_options(retries=0),
            backtest_flow.backtest.with_options(retries=0),
        )
        drain_prefect()


def purchases_file(home: Path, maturity: str = "1d") -> Path:
    """A stream file under a name of its own."""
    name = f"purchases-{time.time_ns()}"
    path = home / f"{name}.toml"
    path.write_text(STREAM.format(name=name, maturity=maturity))
    return path


def purchases(
    home: Path,
    *,
    flipped_from: float = 2.0,
    labelled: bool = True,
    leak: bool = False,
    maturity: str = "1d",
    n: int = N,
    shifted_from: float = 2.0,
) -> tuple[Path, Stream]:
    """A stream file, its lake filled: one in five is a fraud of six times the usual amount.

    Labels of events after the share `flipped_from` of the period say the contrary. With `leak`, all frauds and no other
    events have the channel "phone". Amounts after the share `shifted_from` of the period are three times as high.
    """
    path = purchases_file(home, maturity)
    stream = load(path)
    create_topics(Settings().connection(), {stream.topic("control"): 1}, config=KEEP_FOR_EVER)
    random = np.random.default_rng(5)
    card = random.integers(0, 40, n)
    fraud = random.random(n) < 0.2
    at = np.linspace(START_MS, END_MS - 1, n).astype(np.int64)
    usual = (10.0 + card) * (1 + 0.2 * random.normal(size=n)) * np.where(fraud, 6.0, 1.0)
    late = at >= START_MS + shifted_from * (END_MS - START_MS)
    rows = {
        "partition": [0] * n,
        "offset": range(n),
        "arrival_ms": at,
        "event_id": [f"e{i}" for i in range(n)],
        "event_time_ms": at,
        "card": [f"card-{c}" for c in card],
        "amount": usual * np.where(late, 3.0, 1.0),
        "channel": np.where(fraud & leak, "phone", random.choice(["web", "shop"], n)),
    }
    lake = Settings().lake(stream)
    lake.append(
        "events",
        lake.frame("events", rows),
        topic=stream.topic("events"),
        through={0: n - 1},
        arrivals={0: int(at[-1])},
    )
    said = np.where(at < START_MS + flipped_from * (END_MS - START_MS), fraud, ~fraud)
    which = np.flatnonzero(said) if labelled else np.zeros(0, np.int64)
    reports = lake.frame(
        "labels",
        {
            "partition": [0] * len(which),
            "offset": range(len(which)),
            "arrival_ms": at[which] + DAY_MS // 2,
            "event_id": [f"e{i}" for i in which],
            "event_time_ms": at[which],
            "label": [1] * len(which),
            "labelled_at_ms": at[which] + DAY_MS // 2,
            "source": ["test"] * len(which),
            "labelled_by": [None] * len(which),
            "label_why": [None] * len(which),
            "card": [f"card-{c}" for c in card[which]],
        },
    )
    if len(which):
        lake.append("labels", reports, topic=stream.topic("labels"), through={0: len(which) - 1})
    return path, stream


def candidate(stream: Stream) -> dict[str, str]:
    found = registry.version_of(registry_name(stream), "candidate", tracking_uri=Settings().tracking_uri())
    assert found is not None
    return found[1]


def test_the_gate_judges_on_events_that_chose_nothing_and_against_champion_reference_and_baselines(
    unmask: Unmask,
) -> None:
    path, stream = purchases(unmask.home)
    run_id = unmask.pretrain(path, as_of=END)
    unmask.finetune(path, as_of=END, label_curve=True)
    the_runs_are_worth_reviewing(stream)
    tags = candidate(stream)
    figures = Figures.of_tags(tags)
    assert figures is not None
    assert figures.frauds >= 30
    assert set(figures.comparisons) == {"label_free", *verdict.BASELINES}
    known_until = END_MS - DAY_MS - 60_000
    assert time_of(tags, "learned_until") == pytest.approx(known_until - 0.1 * (known_until - START_MS), abs=DAY_MS)
    assert (tags["encoder.run"], tags["encoder_as_of"]) == (run_id, rfc3339(END_MS))
    assert "validation_alert_rate" in tags
    uri, name = Settings().tracking_uri(), registry_name(stream)
    first = unmask.promote(path)
    unlabelled = {"columns", "age", "history", "scores", "alert budget", "score drift", "leaks", "reasons"}
    assert set(first.checks) == unlabelled | {"baselines", "calibration", "one field"}

    assert unmask.promote(path, force=True).promoted
    unmask.finetune(path, as_of=END, seed=1)
    second = unmask.promote(path, force=True)
    assert {"champion", "reference", "time"} <= set(second.checks)
    assert "trained on" not in second.checks["champion"].seen  # its own slice was the same one

    promote_fake(stream, unmask.home, GOOD | {"as_of": rfc3339(END_MS + 1)})
    newer = unmask.promote(path)
    assert (newer.promoted, newer.checks["age"].holds, newer.checks["champion"].holds) == (False, False, False)
    assert "version 3 cannot be loaded" in newer.checks["champion"].seen
    found = registry.version_of(name, "champion", tracking_uri=uri)
    assert found is not None
    assert found[0] == 3


def reviewed(stream: Stream, stage: str) -> tuple[Any, set[str], set[str], str]:
    """The newest run of a stage, the names of its plots and tables, and its page."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=Settings().tracking_uri())
    experiment = client.get_experiment_by_name(f"{stream.name}/{stage}")
    assert experiment is not None
    assert experiment.tags["mlflow.experimentKind"] == "custom_model_development"
    run = client.search_runs([experiment.experiment_id], max_results=1)[0]
    plots = {Path(one.path).stem for one in client.list_artifacts(run.info.run_id, "plots")}
    files = [Path(one.path) for one in client.list_artifacts(run.info.run_id)]
    page = Path(client.download_artifacts(run.info.run_id, "report.html")).read_text()
    return run, plots, {file.stem for file in files if file.suffix == ".json"}, page


def the_runs_are_worth_reviewing(stream: Stream) -> None:
    """Dataset, description, plots, tables, page and logged model of a pretraining and a fine-tuning with labels."""
    run, plots, _, page = reviewed(stream, "pretrain")
    assert plots == {"loss", "field_losses", "field_loss_curves", "probe"}
    assert "field_loss/amount" in run.data.metrics
    run, plots, tables, page = reviewed(stream, "finetune")
    (used,) = run.inputs.dataset_inputs
    assert (used.dataset.name, [tag.value for tag in used.tags]) == (stream.name, ["training"])
    profile = json.loads(used.dataset.profile)
    assert (profile["rows"], profile["from"]) == (N, "2023-11-14T00:00:00.000Z")
    assert profile["labels mature after"] == "1 days (reported: frauds only)"
    assert {"precision_recall", "roc", "calibration", "value_at_cost", "groups", "label_efficiency"} <= plots
    assert tables == {"comparison", "groups", "hardest_misses", "false_alarms"}
    said = run.data.tags["mlflow.note.content"]
    assert f"/#/models/{registry_name(stream)}/versions/1" in said
    assert "2023-11-14T00:00:00.000Z" in said
    for words in ("Hardest misses", "False alarms", "Groups", "Validation beside held-out events", "What labels give"):
        assert f"<h2>{words}</h2>" in page
    assert page.count("<svg") == len(plots)
    assert len(run.outputs.model_outputs) == 1


TOGETHER = """
import sys
from flows import pretrain
from flows.cli.entry import main
from models.fit.pretrain import PretrainConfig
pretrain.PretrainConfig = lambda: PretrainConfig(width=32, max_steps=60, min_steps=60, batch=256)
if __name__ == "__main__":
    main()
"""


def test_two_processes_of_the_launcher_pretrain_in_one_run(unmask: Unmask) -> None:
    path, stream = purchases(unmask.home)
    program = unmask.home / "program.py"
    program.write_text(TOGETHER)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(program)]
    done = subprocess.run(
        [*command, "pretrain", "--stream", str(path)],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=HANG_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("The encoder is trained.") == 1
    run, *_ = reviewed(stream, "pretrain")
    assert (run.info.status, run.data.params["processes"], run.data.params["rows"]) == ("FINISHED", "2", str(N))
    flow_runs = httpx.post(
        f"{Settings().prefect}/flow_runs/filter", json={"flow_runs": {"name": {"like_": path.stem}}}
    ).json()
    assert [one["state_type"] for one in flow_runs] == ["COMPLETED"]
    trained = find(Settings(), stream)
    assert trained is not None


def test_labels_kept_for_the_gate_change_nothing_of_the_model(unmask: Unmask) -> None:
    models, run_id = [], None
    for flipped_from in (2.0, 0.875):
        path, stream = purchases(unmask.home, flipped_from=flipped_from)
        run_id = run_id or unmask.pretrain(path, as_of=END)
        unmask.finetune(path, as_of=END, encoder_run=run_id)
        folder = Settings().work_folder(stream, "finetune") / "model"
        figures = Figures.of_tags(candidate(stream))
        assert figures is not None
        assert json.loads((folder / "config.json").read_text())["metrics"]["has_head"] == 1
        models.append((load_file(folder / "model.safetensors"), (folder / "config.json").read_text(), figures))
    for name, array in models[0][0].items():
        np.testing.assert_array_equal(array, models[1][0][name], err_msg=name)
    assert models[0][1] == models[1][1]
    assert models[0][2].comparisons != models[1][2].comparisons


def test_a_field_that_knows_the_label_is_refused_by_name_before_fine_tuning(unmask: Unmask) -> None:
    path, _ = purchases(unmask.home, leak=True)
    unmask.pretrain(path, as_of=END)
    with pytest.raises(LeakError, match=r"- channel: it tells the label: one value for 100.0% of the frauds"):
        unmask.finetune(path, as_of=END)


def test_a_stream_without_labels_is_judged_without_and_the_figures_say_so(unmask: Unmask) -> None:
    path, stream = purchases(unmask.home, labelled=False)
    unmask.pretrain(path, as_of=END)
    unmask.finetune(path, as_of=END)
    _, plots, tables, page = reviewed(stream, "finetune")
    assert plots == {"score_histogram", "scores_over_time", "alerts_over_time"}
    assert tables == {"surprising_fields", "highest_scores"}
    assert "check the reasons of the highest ones" in page
    checks = unmask.promote(path).checks
    assert set(checks) == {
        "columns",
        "age",
        "history",
        "scores",
        "alert budget",
        "score drift",
        "leaks",
        "reasons",
        "labels",
    }
    assert "checked without labels" in checks["labels"].seen


def test_a_person_approves_what_has_passed_the_gate(unmask: Unmask, monkeypatch: pytest.MonkeyPatch) -> None:
    from flows import promote

    path, stream = purchases(unmask.home, labelled=False)
    path.write_text(path.read_text() + PERSON)
    uri, name = Settings().tracking_uri(), registry_name(stream)
    unmask.pretrain(path, as_of=END)
    unmask.finetune(path, as_of=END)
    monkeypatch.setattr(promote, "APPROVAL_S", 1)
    waiting = unmask.promote(path)
    assert (waiting.outcome, waiting.why) == ("challenger", "nobody has approved it yet"), waiting.words
    assert registry.version_of(name, "champion", tracking_uri=uri) is None
    monkeypatch.setattr(promote, "APPROVAL_S", HANG_S)
    person = threading.Thread(target=approve_on_the_page, args=(Settings().prefect_environment()["PREFECT_API_URL"],))
    person.start()
    approved = unmask.promote(path)
    person.join()
    assert (approved.outcome, approved.by, approved.why) == ("champion", "ann", "looks right"), approved.words
    unmask.finetune(path, as_of=END, seed=1)
    assert unmask.promote(path, approved_by="bob").by == "bob"
    found = registry.version_of(name, "champion", tracking_uri=uri)
    assert found is not None
    assert found[0] == 2


def approve_on_the_page(api: str) -> None:
    """What the page of a paused run does when somebody fills in its form."""
    with httpx.Client(base_url=api) as page:
        state = {"flow_runs": {"state": {"type": {"any_": ["PAUSED"]}}}}
        deadline_s = time.monotonic() + HANG_S
        while not (paused := page.post("/flow_runs/filter", json=state).json()):
            assert time.monotonic() < deadline_s
            time.sleep(0.2)
        run_input = {"approve": True, "by": "ann", "why": "looks right"}
        page.post(f"/flow_runs/{paused[0]['id']}/resume", json={"run_input": run_input}).raise_for_status()


def test_an_encoder_that_was_altered_in_mlflow_or_here_is_not_taken(unmask: Unmask, tmp_path: Path) -> None:
    from mlflow import MlflowClient

    path, _ = purchases(unmask.home)
    run_id = unmask.pretrain(path, as_of=END)
    settings = Settings()
    client = MlflowClient(tracking_uri=settings.tracking_uri())
    copy = settings.home / "encoders" / client.get_run(run_id).data.tags["encoder.digest"]
    unmask.finetune(path, as_of=END)
    whole = (copy / "pretrained.safetensors").read_bytes()
    altered = tmp_path / "pretrained.safetensors"
    altered.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    (copy / "pretrained.safetensors").write_bytes(altered.read_bytes())
    unmask.finetune(path, as_of=END, encoder_run=run_id)  # the copy is damaged: it is fetched again
    assert (copy / "pretrained.safetensors").read_bytes() == whole
    (copy / "pretrained.safetensors").write_bytes(altered.read_bytes())
    client.log_artifact(run_id, str(altered), "encoder")
    with pytest.raises(NoEncoderError, match=r"does not match its tag .*`unmask pretrain` again"):
        unmask.finetune(path, as_of=END)
    assert not copy.exists()


KILLED = """
import os, signal, sys
from datetime import datetime
from pathlib import Path
from models.ship import registry
from flows import pretrain
from models.fit.pretrain import PretrainConfig

def upload_and_die(run, folder, name):
    run._client.log_artifact(run.run_id, str(folder / "pretrained.json"), name)
    os.kill(os.getpid(), signal.SIGKILL)

registry.Run.log_folder = upload_and_die
pretrain.PretrainConfig = lambda: PretrainConfig(width=32, max_steps=10, min_steps=10, batch=256)
pretrain.pretrain(Path(sys.argv[1]), as_of=datetime.fromisoformat(sys.argv[2]))
"""


def test_a_killed_pretrain_leaves_no_half_encoder(unmask: Unmask) -> None:
    path, stream = purchases(unmask.home)

    command = [sys.executable, "-c", KILLED, str(path), END.isoformat()]
    done = subprocess.run(command, env=dict(os.environ), capture_output=True, text=True, timeout=HANG_S)
    assert done.returncode == -9, done.stderr
    with pytest.raises(NoEncoderError, match="has no finished pretrain run"):
        unmask.finetune(path, as_of=END)
    run_id = unmask.pretrain(path, as_of=END)
    assert find(Settings(), stream).run_id == run_id


@pytest.mark.parametrize(
    ("tags", "told"),
    [
        (BEFORE | {"as_of": AFTER_MIDDLE}, r"champion saw events up to .* \(as_of\): 100 of the 600 events"),
        (BEFORE | {"encoder_as_of": AFTER_MIDDLE}, r"champion saw events up to .* \(encoder_as_of\)"),
        ({"encoder_as_of": MIDDLE}, "tag as_of of champion is ''; it must be the end of its training data"),
        ({"as_of": MIDDLE}, "tag encoder_as_of of champion is ''; it must be the end of its training data"),
        (BEFORE | {"as_of": "-5"}, "tag as_of of champion is '-5'"),
        (BEFORE | {"encoder_as_of": "yesterday"}, "tag encoder_as_of of champion is 'yesterday'"),
    ],
)
def test_a_backtest_refuses_a_champion_whose_head_or_encoder_may_have_seen_the_period(
    unmask: Unmask, tmp_path: Path, tags: dict[str, str], told: str
) -> None:
    path, stream = purchases(unmask.home)
    from flows.backtesting.candidates import NothingToTestError

    promote_fake(stream, tmp_path, tags)
    with pytest.raises(NothingToTestError, match=told):
        unmask.backtest(path, since=at(MIDDLE_MS))


def test_a_backtest_refuses_an_encoder_run_that_saw_the_period_whatever_the_model_says(
    unmask: Unmask, tmp_path: Path
) -> None:
    path, stream = purchases(unmask.home)
    uri = Settings().tracking_uri()
    run_tags = {"as_of": AFTER_MIDDLE}
    with registry.open_run(f"{stream.name}/pretrain", tracking_uri=uri, run_name="p", tags=run_tags) as parent:
        pass
    from flows.backtesting.candidates import NothingToTestError

    promote_fake(stream, tmp_path, BEFORE | {"encoder.run": parent.run_id})
    with pytest.raises(NothingToTestError, match=r"the encoder of champion saw events up to .*use --from 2023-12"):
        unmask.backtest(path, since=at(MIDDLE_MS))


def promote_fake(stream: Stream, folder: Path, tags: dict[str, str]) -> None:
    """A champion of these tags; what it holds is never looked at."""
    uri, name = Settings().tracking_uri(), registry_name(stream)
    (folder / "fake").mkdir()
    (folder / "fake" / "manifest.json").write_text("{}")
    with registry.open_run(f"{stream.name}/finetune", tracking_uri=uri, run_name="f") as run:
        version = registry.register(name, run, folder / "fake", digest="0" * 64, tags=tags)
    registry.set_alias(name, "champion", version, tracking_uri=uri)


def test_a_backtest_tries_models_and_budgets_side_by_side_on_what_none_of_them_has_seen(
    unmask: Unmask, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "pipelines.lake.feature_table")
    path, _ = purchases(unmask.home)
    unmask.pretrain(path, as_of=at(MIDDLE_MS))
    unmask.finetune(path, as_of=at(MIDDLE_MS))
    assert unmask.promote(path, force=True).promoted
    unmask.pretrain(path, as_of=END)  # a newer encoder, which has seen the test period, is not looked at
    found = unmask.backtest(
        path, budgets=["model", "0.05", "4/day", "cost:200:5"], capacity=5, value="amount", with_baselines=True
    )
    # two pretrainings, a fine-tuning, the backtest and both tables of its baselines, each as of another time
    assert sum(record.getMessage().startswith("folded ") for record in caplog.records) == 1
    assert (found.from_ms, found.n_events) == (MIDDLE_MS, 600)  # by default, from the end of the training
    assert {"champion_average_precision", "label_free_average_precision"} <= set(found.comparison)
    assert found.comparison["champion_average_precision"] > 0.5
    assert found.n_judged == pytest.approx(500, abs=2)  # labels of the last day are not final
    assert [one.budget for one in found.outcomes] == ["model", "0.05", "4/day", "cost:200:5"]
    for one in found.outcomes:
        assert one.days.height == 6
        assert one.days["reviewed"].max() <= 5
        assert one.totals["frauds"] == found.n_frauds == sum(one.totals[k] for k in ("caught", "beyond", "below"))
        assert one.totals["lead_hours"] in (None, pytest.approx(12.0, abs=0.1))
        assert one.n_seen == 0
    own, rate, per_day, cost = found.outcomes
    assert own.set_from == "its training"
    assert "days before the period, on which it was trained" in rate.set_from  # too few events that it did not learn
    assert rate.totals["alert_rate"] == pytest.approx(0.05, abs=0.03)
    assert per_day.totals["alerts"] == pytest.approx(24, abs=15)
    assert cost.totals["recall"] > own.totals["recall"] or cost.totals["beyond"] > 0  # misses are dear: many alerts
    assert found.live["champion"].n_compared == 0
    assert any("scored no event of the period live" in note for note in found.notes())

    digest = own.digest
    again = unmask.backtest(path, since=at(MIDDLE_MS), models=["challenger", digest[:12], digest])
    assert [one.digest for one in again.outcomes] == [digest]
    from flows.backtesting.candidates import NothingToTestError

    for name, told in (("f" * 12, "has no version"), ("champ", "is neither an alias")):
        with pytest.raises(NothingToTestError, match=told):
            unmask.backtest(path, models=[name])
    with pytest.raises(UnmaskError, match="no such number field; it has amount"):
        unmask.backtest(path, value="price")
    with pytest.raises(NothingToTestError, match=r"is empty; by default it begins where .* training"):
        unmask.backtest(path, until=at(START_MS))
    seen = unmask.backtest(path, since=at(START_MS), allow_seen=True)
    assert seen.outcomes[0].n_seen == 2400
    assert any(note.startswith("SEEN: champion may have been trained on 2,400 of the 3,000") for note in seen.notes())

    from mlflow import MlflowClient

    run_id = found.url.partition("?")[0].rpartition("/")[2]
    client = MlflowClient(tracking_uri=Settings().tracking_uri())
    run = client.get_run(run_id)
    assert run.data.metrics["caught/champion/4 a day"] == per_day.totals["caught"]
    assert len(client.get_metric_history(run_id, "days/alerts/champion/model")) == 6
    plots = {Path(one.path).stem for one in client.list_artifacts(run_id, "plots")}
    assert plots == {"caught_over_time", "alerts_a_day", "precision_of_reviews", "caught_by_capacity"}
    assert [one.path for one in client.list_artifacts(run_id, "report")] == ["report/backtest.html"]


def test_a_backtest_without_labels_counts_the_work_only(unmask: Unmask) -> None:
    path, _ = purchases(unmask.home, labelled=False, maturity="40d")
    unmask.pretrain(path, as_of=at(MIDDLE_MS))
    unmask.finetune(path, as_of=at(MIDDLE_MS))
    assert unmask.promote(path, force=True).promoted
    found = unmask.backtest(path, capacity=3)
    assert (found.n_judged, found.has_labels) == (0, False)
    assert found.outcomes[0].totals["frauds"] == 0
    from flows.backtesting import report
    from flows.backtesting.charts import charts

    head, _ = report.rows_of(found)
    assert ("caught" not in head, head[-1]) == (True, "p99.9 score")
    page = report.page(found, list(charts(found).values()))
    assert "there are figures about the work only" in page
    assert page.count("<svg") == 1
