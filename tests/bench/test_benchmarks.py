"""The benchmarks run on tiny data, go on after an interruption, and say what is wrong with their input."""

import json
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from sklearn.metrics import average_precision_score

from flows.streams.shipped import load
from models.score.prior import NOTHING_KNOWN
from pipelines.contracts.stream import DAY_MS
from pipelines.kafka.connection import Connection
from pipelines.kafka.port import Message
from tests.bench import ablation, detection, events, payments, peers, robustness, state, tables
from tests.bench.stream import __main__ as stream_main
from tests.bench.stream import profiling
from tests.bench.stream.backlog import Backlog, payments_of
from tests.bench.tables import BenchError
from tests.pipelines.payments import few_payments

PERIODS = ["--train-end", "2026-02-15", "--valid-days", "14", "--test-start", "2026-02-16", "--test-end", "2026-02-28"]


CHEAP = {"n_estimators": 5, "iterations": 5, "steps": 10}


@pytest.fixture
def cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every method with few trees and steps."""
    few = [{name: n for name, n in CHEAP.items() if name in method.default} for method in peers.SUPERVISED]
    methods = tuple(
        replace(method, default=method.default | less, space={name: {"choice": [n]} for name, n in less.items()})
        for method, less in zip(peers.SUPERVISED, few, strict=True)
    )
    monkeypatch.setattr(peers, "SUPERVISED", methods)
    monkeypatch.setattr(payments, "QUICK_STEPS", 8)
    monkeypatch.setattr(detection, "QUICK_STEPS", 8)


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    """A folder of one small table with 40 anomalies."""
    random = np.random.default_rng(0)
    y = (np.arange(400) < 40).astype(np.int64)
    np.savez(tmp_path / "small.npz", X=random.normal(size=(400, 4)) + 2 * y[:, None], y=y)
    return tmp_path


@pytest.fixture
def stream_folder(tmp_path: Path) -> Path:
    """A folder of two Parquet files of simulated payments."""
    frame = few_payments(seed=3, days=60, n_customers=50)
    frame.head(2_000).write_parquet(tmp_path / "a.parquet")
    frame.tail(-2_000).write_parquet(tmp_path / "b.parquet")
    return tmp_path


def check_report(out: Path, *, settings: set[str]) -> dict:
    """The report at `out`, with all its rows and files."""
    report = json.loads(out.read_text())
    for row in report["rows"]:
        assert tuple(row)[: len(tables.ROW_KEYS)] == tables.ROW_KEYS
        assert 0 <= row["average_precision"] <= 1
    assert {row["setting"] for row in report["rows"]} == settings == {one["setting"] for one in report["summary"]}
    assert set(report["protocol"]["spaces"]) == {method.name for method in peers.SUPERVISED}
    assert out.with_suffix(".png").stat().st_size > 5_000
    assert all(f"## {setting}\n" in out.with_suffix(".md").read_text() for setting in settings)
    return report


@pytest.mark.usefixtures("cheap")
def test_the_benchmark_of_plain_tables_runs_and_goes_on(plain: Path) -> None:
    out = plain / "report.json"
    command = ["--data", str(plain), "--out", str(out), "--quick", "--max-rows", "300"]
    assert detection.main(command) == 0
    first = check_report(out, settings={"contaminated", "one-class", "5 %", "100 %"})
    assert first["protocol"]["cells_reused"] == 0
    assert {row["method"] for row in first["rows"]} == {
        "unmask",
        *(method.name for method in (*peers.UNSUPERVISED, *peers.SUPERVISED)),
    }
    kept = sorted((plain / "report.cells").iterdir())
    kept[0].unlink()
    assert detection.main(command) == 0
    again = json.loads(out.read_text())
    assert again["protocol"]["cells_reused"] == len(kept) - 1
    for ours, before in zip(again["rows"], first["rows"], strict=True):
        assert ours["average_precision"] == pytest.approx(before["average_precision"])


@pytest.mark.usefixtures("cheap")
def test_the_benchmark_of_a_stream_runs(stream_folder: Path) -> None:
    out = stream_folder / "report.json"
    command = ["--data", str(stream_folder), "--stream", "payments", *PERIODS, "--labels", "0,0.2,1", "--out", str(out)]
    assert payments.main([*command, "--quick"]) == 0
    report = check_report(out, settings={"0 %", "20 %", "100 %"})
    by_setting = {s: {r["method"]: r for r in report["rows"] if r["setting"] == s} for s in ("0 %", "20 %", "100 %")}
    assert {"unmask", "unmask-zero", "amount / own mean", "ECOD"} <= set(by_setting["0 %"])
    assert {"unmask", "unmask-zero", "unmask-scratch", "LR-ple", "DevNet"} <= set(by_setting["20 %"])
    known = [by_setting[s]["unmask"]["known_frauds"] for s in by_setting]
    assert known[0] == 0 < known[1] < known[2]
    assert all(one["average_precision_low"] <= one["average_precision_high"] for one in report["summary"])


@pytest.mark.usefixtures("cheap")
def test_the_benchmark_of_robustness_runs(stream_folder: Path) -> None:
    for file in stream_folder.glob("*.parquet"):
        frame = pl.read_parquet(file)
        frame.with_columns(kind=pl.col("label") * (1 + pl.int_range(pl.len()) % 2)).write_parquet(file)
    out = stream_folder / "report.json"
    command = ["--data", str(stream_folder), "--stream", "payments", *PERIODS, "--scenario", "kind", "--out", str(out)]
    assert robustness.main([*command, "--quick"]) == 0
    rows = json.loads(out.read_text())["rows"]
    tables_of = ("missing", "missing column", "new frauds", "selective")
    by_table = {name: [row for row in rows if row["table"] == name] for name in tables_of}
    fields = {row["field"]: row for row in by_table["missing"]}
    assert set(fields) == {"none", "amount", "channel", "category", "country", "terminal_id"}
    assert all(0 <= row["average_precision"] <= 1 for row in fields.values())
    assert fields["amount"]["columns"] > fields["country"]["columns"] > 0
    columns = {row["column"]: row["loss"] for row in by_table["missing column"]}
    assert set(columns) == {column.name for column in load("payments").columns}
    assert len(set(columns.values())) > 10
    methods = {row["method"] for row in by_table["new frauds"]}
    assert methods == {"unmask, its labels known", "unmask", "unmask without labels", *robustness.PEERS}
    assert {row["scenario"] for row in by_table["new frauds"]} == {"1", "2"}
    assert all(0 <= row[name] <= 1 for row in by_table["new frauds"] for name in ("recall", "recall_apart"))
    known = [row["known"] for row in by_table["selective"]]
    assert known[0] < known[1] < known[2] < known[3] < known[-1]
    assert by_table["selective"][-1]["of_full"] == 1
    reasons = {row["rows"]: row for row in rows if row["table"] == "reasons"}
    random = "alerts, three random fields"
    assert {"alerts, all named fields", random, f"{random} that are no reasons", "planted: amount"} <= set(reasons)
    planted = {"planted: amount", "planted: category", "planted: customer_id.count", "planted: terminal_id.labels"}
    assert planted <= set(reasons)
    assert reasons["planted: amount"]["alerted"] > 0
    assert "## new frauds\n" in out.with_suffix(".md").read_text()


@pytest.mark.usefixtures("cheap")
def test_the_ablation_runs(stream_folder: Path) -> None:
    out = stream_folder / "report.json"
    command = ["--data", str(stream_folder), "--stream", "payments", *PERIODS, "--labels", "1", "--out", str(out)]
    assert ablation.main([*command, "--quick"]) == 0
    check_report(out, settings={"100 %"})
    found = {row["method"]: row["average_precision"] for row in json.loads(out.read_text())["rows"]}
    parts = ("scratch", "zero", "no-prior", "no-trees", "no-new-statistics", "no-label-fed", "no-history")
    assert set(found) == {"unmask", *(f"unmask-{part}" for part in parts)}
    changed = ("scratch", "no-prior", "no-new-statistics", "no-label-fed", "no-history")  # too few frauds for trees
    assert len({found["unmask"], *(found[f"unmask-{part}"] for part in changed)}) == 1 + len(changed)
    assert ablation.main([*command, "--labels", "0,1"]) == 2


def test_a_field_that_is_dropped_takes_the_columns_made_from_it_along() -> None:
    stream = load("payments")
    names = [column.name for column in stream.columns]
    gone = {names[j] for j in robustness.dropped(stream, "terminal_id")}
    assert {"customer_id.terminal_id.share.all", "terminal_id.since_fraud", "terminal_id.amount.mean.7d"} <= gone
    assert not {"amount", "customer_id.amount.mean.7d", "hour"} & gone
    assert {"channel", "customer_id.channel.share.all"} == {names[j] for j in robustness.dropped(stream, "channel")}


def test_labels_of_other_members_and_of_the_future_are_hidden_everywhere(stream_folder: Path) -> None:
    stream = load("payments")
    start, end, last = (tables.day_ms(text) for text in ("2026-02-16", "2026-02-16", "2026-03-01"))
    options = events.Options(0, end, 14, start, last, "amount")
    data, _ = events.load(stream_folder, stream, options)
    draw = events.Draw(data, 0.2, 1)
    members = np.unique(data.member[draw.is_labelled])
    assert 0.15 < len(members) / len(np.unique(data.member)) < 0.25
    assert data.time_ms[draw.known].max() < start - 7 * DAY_MS
    fed = np.flatnonzero([column.label_fed for column in draw.table.columns if column.kind == "numeric"])
    nothing = events.Draw(data, 0.0, 1)
    assert not nothing.is_labelled.any()
    most = [np.nanmax(np.asarray(one.table.numeric)[:, fed], initial=0.0) for one in (nothing, draw)]
    assert most[0] <= NOTHING_KNOWN < most[1]
    own = [j for j, c in enumerate(draw.table.columns) if c.label_fed and c.name.startswith("customer_id.fraud_rate")]
    assert np.nansum(np.asarray(draw.table.numeric)[~draw.is_labelled][:, own]) == 0
    rows = draw.rows(options.train_start_ms, last, unlabelled=True, most=100)
    assert rows.y.sum() == (draw.known & (data.label == 1)).sum()
    assert rows.weight.sum() == pytest.approx(len(data.label))


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("--data {folder}/none --stream payments {periods} --out {folder}/o.json", "no .parquet file"),
        ("--data {folder} --stream paiments {periods} --out {folder}/o.json", "did you mean 'payments'"),
        ("--data {folder} --stream payments {periods} --out {folder}/none/o.json", "create it"),
        ("--data {folder} --stream payments {periods} --labels 2 --out {folder}/o.json", "between 0 and 1"),
        ("--data {folder} --stream payments {periods} --valid-days 99 --out {folder}/o.json", "Change the dates"),
        ("--data {folder} --stream payments {periods} --amount hour --out {folder}/o.json", "choose one of amount"),
        ("--data {folder} --stream handbook {periods} --out {folder}/o.json", "tx_id"),
    ],
)
def test_input_of_no_use_ends_with_code_2(
    stream_folder: Path, capsys: pytest.CaptureFixture[str], command: str, said: str
) -> None:
    words = command.format(folder=stream_folder, periods=" ".join(PERIODS)).split()
    assert payments.main(words) == 2
    assert said in capsys.readouterr().err


def test_a_file_that_is_no_table_ends_with_code_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["--data", str(tmp_path), "--out", str(tmp_path / "o.json")]
    assert detection.main(command) == 2
    assert "no .npz file" in capsys.readouterr().err
    np.savez(tmp_path / "bad.npz", X=np.zeros((30, 2)), y=np.zeros(30))
    assert detection.main(command) == 2
    assert "at least 10 rows of 0" in capsys.readouterr().err


def test_the_resampled_average_precision_is_that_of_the_sample() -> None:
    random = np.random.default_rng(1)
    label, entity = (random.random(500) < 0.1).astype(np.int8), random.integers(0, 40, 500)
    score = np.round(label + random.normal(size=500), 1)  # with equal scores
    found = tables.resampled_ap(label, score, entity, n=3)
    again = np.random.default_rng(0)
    for ap in found:
        times = np.bincount(again.integers(0, 40, 40), minlength=40)[entity]
        assert ap == pytest.approx(average_precision_score(label, score, sample_weight=times))


def test_ranks_and_paired_differences_are_those_of_the_rows() -> None:
    rows = [
        {"data": data, "setting": "5 %", "method": method, "seed": seed, "auc_roc": 0.5, "average_precision": ap + seed}
        for data in ("a", "b")
        for seed in (1, 2, 3)
        for method, ap in (("unmask", 0.3), ("KNN", 0.1), ("LR", 0.3))
    ]
    by_method = {one["method"]: one for one in tables.summarise(rows)}
    assert [by_method[name]["mean_rank"] for name in ("unmask", "KNN", "LR")] == [1.5, 3.0, 1.5]
    assert by_method["KNN"]["ahead"] == pytest.approx(0.2)
    assert by_method["KNN"]["ahead_low"] == pytest.approx(0.2) == by_method["KNN"]["ahead_high"]
    assert by_method["KNN"]["average_precision_high"] > 2.1


@pytest.mark.parametrize("method", peers.SUPERVISED, ids=lambda method: method.name)
def test_every_method_with_labels_finds_a_plain_anomaly(method: peers.Supervised) -> None:
    random = np.random.default_rng(0)
    y = (np.arange(600) % 10 == 0).astype(np.int8)
    x = random.normal(size=(600, 5)) + 3 * y[:, None] * (np.arange(5) < 2)
    x[random.random(x.shape) < 0.05] = np.nan
    rows = peers.Rows(x[:400], y[:400], np.ones(400))
    default = method.default | ({"steps": 200} if "steps" in method.default else {})
    score = method.fit(rows, default, 0)
    assert average_precision_score(y[400:], score(x[400:])) > 0.8
    drawn = peers.draw(method.space, random)
    assert set(drawn) >= set(method.default) - {"objective"}


@pytest.mark.parametrize("method", peers.UNSUPERVISED, ids=lambda method: method.name)
def test_every_method_without_labels_finds_a_plain_anomaly(method: peers.Unsupervised) -> None:
    random = np.random.default_rng(0)
    y = np.arange(600) % 20 == 0
    x = random.normal(size=(600, 5)) + 5 * y[:, None] * (np.arange(5) < 2)
    x[random.random(x.shape) < 0.02] = np.nan
    assert average_precision_score(y, method.fit(x[~y], 0)(x)) > 0.7


QUICKLY = ["--events", "4000", "--quick", "--streams", "key", "--forms", "events"]


def test_the_benchmark_of_the_live_scorer_runs_on_a_broker_and_keeps_its_rows(
    kafka: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("KAFKA_BOOTSTRAP_SERVERS", kafka)
    monkeypatch.setattr(stream_main, "FOLDER", tmp_path)
    out = tmp_path / "stream.json"
    command = ["--systems", "bare,unmask,xgboost", "--clients", "kafka-python", *QUICKLY, "--out", str(out)]
    assert stream_main.main(command) == 0
    rows = json.loads(out.read_text())["rows"]
    assert [(row["system"], row["client"], row["events"]) for row in rows] == [
        (system, "kafka-python", 4_000) for system in ("bare", "unmask", "xgboost")
    ]
    assert all(row["cpu_s"] > 0 and row["wall_s"] > 0 and row["p50_ms"] is None for row in rows)
    assert "unmask (kafka-python, events, key) / bare (kafka-python, events)" in capsys.readouterr().out
    assert stream_main.main(command) == 0
    assert capsys.readouterr().out.count("kept") == 3
    assert json.loads(out.read_text())["rows"] == rows


def test_the_benchmark_of_the_live_scorer_finds_a_missing_score(kafka: str) -> None:
    backlog = Backlog(kafka, "bench-check")
    backlog.write(payments_of(100, 30))
    backlog.renew_outputs()
    with Connection(kafka).writer() as writer:
        for i in range(99):
            writer.send(Message("bench-check.scores", b'{"event_id":"%d"}' % i, b"k"))
        writer.flush()
        with pytest.raises(BenchError, match="published 99 scores of 99 events; 100 events were sent"):
            backlog.check("unmask", "events")
        writer.send(Message("bench-check.scores", b'{"event_id":"0"}', b"k"))
        writer.flush()
    with pytest.raises(BenchError, match="published 100 scores of 99 events"):
        backlog.check("unmask", "events")


def test_the_benchmark_of_the_live_scorer_says_what_it_cannot_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert stream_main.main(["--systems", "bear", "--out", str(tmp_path / "o.json")]) == 2
    assert "no such system; choose from bare, unmask" in capsys.readouterr().err
    assert stream_main.main(["--systems", "river", "--clients", "kafka-python", "--out", str(tmp_path / "o.json")]) == 2
    assert "no run is left" in capsys.readouterr().err


@pytest.mark.parametrize("where", sorted(profiling.STAGES))
def test_every_stage_of_the_profile_is_a_function(where: str) -> None:
    module, _, name = where.partition(" ")
    if find_spec(module.rpartition(".")[0]) is None:
        pytest.skip(f"{module} is not there")
    profiling.found(module, name)


def test_the_benchmark_of_the_state_says_what_its_tables_hold(tmp_path: Path) -> None:
    assert state.main(["--entities", "2000", "--streams", "thirty", "--out", str(tmp_path / "out.json")]) == 0
    (row,) = json.loads((tmp_path / "out.json").read_text())["rows"]
    assert (row["stream"], row["features"]) == ("thirty", 30)
    assert sum(row["tables"].values()) < row["state_bytes"]
    assert min(row["fold_us"], row["begin_ms"], row["restore_s"], row["snapshot_bytes"], *row["entities"]) > 0
