"""The whole loop on this machine with real parts: broker, MLflow, Prefect, flows, live scorer, audit."""

import json
import os
import re
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from rich.console import Console
from rich.table import Table

from flows import progress
from flows.local import kafka_server, processes, servers
from flows.screen import plain
from flows.serve import follow
from flows.serve.follow import Follower
from flows.settings import Settings
from pipelines.contracts import stream as streams
from pipelines.contracts import stream_file
from pipelines.contracts.stream import DAY_MS, Stream
from pipelines.errors import StreamFileError, UnmaskError
from pipelines.kafka import topics
from pipelines.kafka.connection import Connection
from pipelines.lake import audit
from pipelines.play import producer, simulate
from pipelines.play.table_file import read_table

N_PARTITIONS = 4
BROKEN_SHARE, DUPLICATE_SHARE = 0.01, 0.005
LIVE_DAYS_OF_FOLDER = 7
LIVE_DEADLINE_S = 180.0
SHIPPED = Path(__file__).parent / "streams"

# The simulated stream: about 120,000 payments, of which the last days are played live.
SIMULATED = {"n_customers": 1_500, "n_terminals": 2_200, "days": 40}
SIMULATED_START = datetime(2026, 1, 1, tzinfo=UTC)
SIMULATED_LIVE_EVENTS = 31_000


class Demo:
    """One run of the demo.

    Args:
        data: folder of Parquet or CSV files to replay; None simulates a payment stream.
        stream_file: stream file; None takes the shipped one that fits.
        out: where summary.json and the run's stream file go.
        keep: leave the servers up.
        rate: live events a second.
        seed: of the simulation and of training.
    """

    def __init__(
        self,
        *,
        data: Path | None,
        stream_file: Path | None,
        out: Path,
        keep: bool,
        rate: float,
        seed: int,
        console: Console,
    ) -> None:
        self.data, self.stream_file, self.out = data, stream_file, out
        self.keep, self.rate, self.seed, self.console = keep, rate, seed, console
        self.home = Settings().home
        self.started_s = time.monotonic()
        self.broker: kafka_server.Broker | None = None
        self.servers: servers.Servers | None = None
        self.servers_were_up = False
        self.scorer: processes.Process | None = None
        self.finished = False
        self.topics: list[str] = []  # made by this run

    def run(self) -> bool:
        """Run the loop; True where every event is accounted for and every feature is equal offline and live."""
        self.out.mkdir(parents=True, exist_ok=True)
        try:
            frame, source = self._events()
            self._start_servers()
            stream = self._fresh_topics(source)
            live_from_ms, live_until_ms = self._live_span(frame, stream)
            self._history(frame, stream, live_from_ms)
            self._train(live_from_ms)
            live = self._live(frame, stream, live_from_ms, live_until_ms)
            return self._report(frame, stream, live, live_from_ms, live_until_ms)
        finally:
            self._stop()

    def _say(self, step: str, words: str) -> None:
        self.console.print(
            f"[bold cyan]{time.monotonic() - self.started_s:5.0f} s[/bold cyan]  [bold]{step}[/bold]  {words}"
        )

    def _events(self) -> tuple[pl.DataFrame, Path]:
        """The events, in time order, and the stream file that describes them."""
        if self.data is None:
            source = SHIPPED / "payments.toml"
            frame = simulate.payments(seed=self.seed, start=SIMULATED_START, **SIMULATED)
            self._say("events", f"{len(frame):,} simulated payments over {SIMULATED['days']} days")
            return frame, source
        source = self.stream_file or _fitting_stream(self.data)
        frame = simulate.read_folder(stream_file.load(source), self.data)
        self._say("events", f"{len(frame):,} from {self.data.name}, described by {source.name}")
        return frame, source

    def _start_servers(self) -> None:
        settings = Settings()
        self.servers_were_up = servers.find_servers(settings.ui_folder) is not None
        folder = settings.demo_kafka_folder
        if kafka_server.find_broker(folder) is not None:
            kafka_server.stop_broker(folder)
        _empty(folder)
        with ThreadPoolExecutor(1) as pool:
            starting = pool.submit(
                servers.start_servers, settings.ui_folder, log=lambda line: self._say("server", line)
            )
            try:
                self.broker = kafka_server.start_broker(folder, log=lambda line: self._say("server", line))
                self.servers = starting.result()
            except BaseException:
                self._stop_pages()  # the waiting start notices that its servers have ended
                raise
        os.environ |= {
            **servers.NO_CALLS_HOME,
            "KAFKA_BOOTSTRAP_SERVERS": self.broker.bootstrap,
            "MLFLOW_TRACKING_URI": self.servers.mlflow_uri,
            "PREFECT_API_URL": self.servers.prefect_api,
            "PREFECT_HOME": str((settings.ui_folder / "prefect").resolve()),
        }
        os.environ |= servers.NO_PREFECT_CONSOLE
        topics.wait_until_up(self._connection, deadline_s=30)

    def _stop_pages(self) -> None:
        if not self.servers_were_up:
            servers.stop_servers(Settings().ui_folder)

    @property
    def _connection(self) -> Connection:
        return Settings().connection()

    @property
    def _stream_path(self) -> Path:
        return self.out / "stream.toml"

    def _fresh_topics(self, source: Path) -> Stream:
        """The stream under a name and topics of its own: the demo replaces no champion of daily work."""
        spec = stream_file.load(source)
        name, topics = f"{spec.name}-demo", f"{spec.name}-{datetime.now(UTC):%Y%m%d-%H%M%S}"
        text = source.read_text(encoding="utf-8")
        table = re.search(r"(?ms)^[ \t]*\[stream\][^\n]*\n(.*?)(?=^[ \t]*\[|\Z)", text)
        assert table is not None  # the file has just been loaded
        others = re.sub(r"(?m)^[ \t]*(name|topics)[ \t]*=.*\n?", "", table[1])
        named = f'name = "{name}"\ntopics = "{topics}"\n'
        self._stream_path.write_text(text[: table.start(1)] + named + others + text[table.end(1) :], encoding="utf-8")
        stream = stream_file.load(self._stream_path)
        producer.create_stream_topics(self._connection, stream, n_partitions=N_PARTITIONS, append_time=False)
        self.topics = [stream.topic(kind) for kind in streams.TOPICS]
        return stream

    def _live_span(self, frame: pl.DataFrame, stream: Stream) -> tuple[int, int]:
        """[from, until) of the live part, ms of event time."""
        times = frame[stream.event_time].dt.epoch("ms")
        if self.data is None:
            return int(times[-SIMULATED_LIVE_EVENTS]), int(times[-1]) + 1
        if stream.replay is not None:
            return stream.replay.live_from_ms, stream.replay.live_until_ms
        last_day = int(times[-1]) // DAY_MS
        return (last_day + 1 - LIVE_DAYS_OF_FOLDER) * DAY_MS, (last_day + 1) * DAY_MS

    def _replayer(self, stream: Stream) -> producer.Replayer:
        return producer.Replayer(self._connection, stream, n_partitions=N_PARTITIONS)

    def _history(self, frame: pl.DataFrame, stream: Stream, live_from_ms: int) -> None:
        with progress.shown("history") as report:
            played = self._replayer(stream).play(
                frame,
                label_delay_ms=_label_delay_ms(stream),
                until_ms=live_from_ms,
                seed=self.seed,
                progress=lambda done, n: report(done / max(n, 1), f"{done:,} of {n:,} events"),
            )
        self._say("history", f"{played.n_events:,} events to {stream.topic('events')} in {played.wall_s:.0f} s")

    def _train(self, live_from_ms: int) -> None:
        from flows.finetune import finetune
        from flows.ingest import ingest
        from flows.pretrain import pretrain
        from flows.promote import promote

        steps: list[tuple[str, Callable[[], Any]]] = [
            ("ingest", lambda: f"{ingest.with_options(retries=0)(self._stream_path).n_events:,} events in the lake"),
            (
                "pretrain",
                lambda: pretrain.with_options(retries=0)(self._stream_path, as_of_ms=live_from_ms, seed=self.seed),
            ),
            (
                "finetune",
                lambda: finetune.with_options(retries=0)(self._stream_path, as_of_ms=live_from_ms, seed=self.seed),
            ),
            ("promote", lambda: promote.with_options(retries=0)(self._stream_path, force=True).words),
        ]
        for name, step in steps:
            began = time.monotonic()
            answer = step()
            self._say(name, f"{answer}  ({time.monotonic() - began:.0f} s)")

    def _live(self, frame: pl.DataFrame, stream: Stream, live_from_ms: int, live_until_ms: int) -> Follower:
        began = time.monotonic()
        self._start_scorer(stream)
        self._say("scorer", f"has folded the history in {time.monotonic() - began:.0f} s and is live")
        follower = Follower(self._connection, stream)
        follower.start()
        try:
            replayer = self._replayer(stream)
            with progress.shown("live") as report:
                began = time.monotonic()
                played = replayer.play(
                    frame,
                    label_delay_ms=_label_delay_ms(stream),
                    from_ms=live_from_ms,
                    until_ms=live_until_ms,
                    rate=self.rate,
                    broken_share=BROKEN_SHARE,
                    duplicate_share=DUPLICATE_SHARE,
                    seed=self.seed,
                    on_sent=follower.sent,
                    progress=lambda done, n: report(done / max(n, 1), f"{done:,} of {n:,} events"),
                )
                replayer.finish()
            self._await_scores(stream, follower, played.n_events)
        finally:
            follower.stop()
        follower.seconds, follower.n_sent = follower.last_read_s - began, played.n_events
        self._say(
            "live",
            f"{played.n_events:,} events sent in {played.wall_s:.0f} s, {len(follower.scores):,} scores read",
        )
        self._stop_scorer()
        return follower

    def _start_scorer(self, stream: Stream) -> None:
        command = [
            sys.executable,
            "-m",
            "flows.cli",
            "score",
            "--stream",
            str(self._stream_path),
            "--from",
            "latest",
        ]
        env = processes.inherited("KAFKA_", "UNMASK_", "MLFLOW_TRACKING_") | {"UNMASK_HOME": str(self.home)}
        self.scorer = processes.launch("scorer", command, folder=self.out, address="", env=env)
        self.scorer.wait_until_up(
            lambda: bool(self._scorer_status(stream).get("caught_up")), deadline_s=LIVE_DEADLINE_S
        )

    def _scorer_status(self, stream: Stream) -> dict[str, Any]:
        path = Settings().scorer_status(stream)
        return json.loads(path.read_text()) if path.exists() else {}

    def _await_scores(self, stream: Stream, follower: Follower, n_events: int) -> None:
        """Wait until every event sent is scored, refused or a duplicate, and every score has been read."""
        until = time.monotonic() + LIVE_DEADLINE_S
        while time.monotonic() < until:
            status = self._scorer_status(stream)
            done = status.get("scored", 0) + status.get("refused", 0) + status.get("duplicates", 0)
            alerted = sum(s.alert for s in list(follower.scores.values()))
            if done >= n_events and len(follower.scores) >= status["scored"] and len(follower.alerts) >= alerted:
                return
            if self.scorer is None or not self.scorer.is_running:
                raise UnmaskError(f"the scorer ended; its log is {self.out / 'scorer.log'}")
            time.sleep(0.1)
        raise UnmaskError(
            f"{n_events:,} events were sent, {len(follower.scores):,} scores came within {LIVE_DEADLINE_S:.0f} s; "
            f"the scorer's log is {self.out / 'scorer.log'}"
        )

    def _stop_scorer(self) -> None:
        if self.scorer is not None:
            self.scorer.stop()
            self.scorer = None

    def _report(
        self, frame: pl.DataFrame, stream: Stream, live: Follower, live_from_ms: int, live_until_ms: int
    ) -> bool:
        from flows.backtest import backtest
        from flows.ingest import ingest
        from flows.serve.service import model_of

        ingest.with_options(retries=0)(self._stream_path)
        settings = Settings()
        found = audit.reconcile(self._connection, stream)
        skew = audit.skew_audit(
            settings.lake(stream), stream, models=lambda digest: model_of(settings, stream, digest), since=found.since
        )
        assert self.broker is not None
        summary: dict[str, Any] = {
            "broker": f"{self.broker.version} at {self.broker.bootstrap}",
            "events": found.n_events,
            "scored": found.n_scored,
            "refused": found.n_refused,
            "duplicates": found.n_duplicates,
            "alerts": len(live.alerts),
            "events_per_second": round(found.n_events / live.seconds, 1),
            "latency_ms": live.latency_ms(),
            **_quality(frame, stream, live),
            "out_of_order": sum(s.out_of_order for s in live.scores.values()),
            "skew_audit": {
                "checked": skew.checked,
                "equal": skew.equal,
                "scored_again": skew.n_model_checked,
                "worst_score_difference": skew.worst_score_difference,
            },
        }
        if stream.labels is not None and stream.labels.column in frame.columns:
            truth = self.out / "truth.parquet"
            columns = [
                pl.col(stream.event_id).cast(pl.String).alias("event_id"),
                pl.col(stream.labels.column).alias("label"),
            ]
            frame.select(columns).write_parquet(truth)
            summary["backtest"] = {
                name: round(figure, 4)
                for name, figure in backtest.with_options(retries=0)(
                    self._stream_path, since_ms=live_from_ms, until_ms=live_until_ms, truth=truth, seed=self.seed
                ).items()
            }
        summary["seconds"] = round(time.monotonic() - self.started_s, 1)
        target = self.out / "summary.json"
        target.write_text(json.dumps(summary, indent=2) + "\n")
        self._print(stream, live, summary, target)
        self.finished = True
        accounted = found.n_scored + found.n_refused + found.n_duplicates
        whole = found.holds and found.n_events == accounted == live.n_sent and not found.pending
        equal = skew.holds and skew.checked == skew.equal == found.n_scored
        if not (whole and equal):
            self.console.print(
                f"[bold red]The books do not balance:[/bold red] {live.n_sent:,} sent, {accounted:,} accounted for, "
                f"{', '.join(f'{n:,} {what}' for what, n in found.n_problems.items() if n)}, {found.pending:,} pending;"
                f" skew audit: {found.n_scored:,} scored, {skew.checked:,} checked, {skew.equal:,} equal"
                + (f", for example {plain(skew.examples[0])}" if skew.examples else "")
                + "".join(f"; model {plain(m.digest[:12])}: {plain(m.why_not)}" for m in skew.models if m.why_not)
            )
            if self.broker.kind == "embedded":
                self.console.print("The embedded broker is known to hide the newest records from the ingest.")
        return whole and equal

    def _print(self, stream: Stream, live: Follower, summary: dict[str, Any], target: Path) -> None:
        self.console.rule("a few alerts")
        for alert in sorted(live.alerts, key=lambda a: -a.score)[:: max(1, len(live.alerts) // 4)][:4]:
            self.console.print(follow.panel(alert))
        table = Table(title="the live part", show_header=False)
        for name, value in _flat(summary):
            table.add_row(name, f"{value:,}" if isinstance(value, int | float) else str(value))
        self.console.print(table)
        assert self.servers is not None
        print_line = self.console.print
        print_line(f"figures   {target}", soft_wrap=True)
        print_line(f"MLflow    {self.servers.mlflow.url}   experiments {stream.name}/…", soft_wrap=True)
        print_line(f"Prefect   {self.servers.prefect.url}", soft_wrap=True)

    def _stop(self) -> None:
        """End every child, side by side, within seconds; with `keep` only the scorer."""
        self._stop_scorer()
        servers.drain_prefect()
        if self.keep and self.finished:
            self.console.print(
                f"left up; look on with `unmask alerts --stream {self._stream_path} --follow`, "
                "end them with `unmask kafka stop` and `unmask ui stop`",
                soft_wrap=True,
            )
            return
        if self.broker is not None and self.broker.kind == "external" and self.topics:
            topics.delete_topics(self._connection, self.topics)
        stops: list[Callable[[], None]] = [self._stop_pages]
        if self.broker is not None:
            stops.append(self.broker.stop)
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(lambda stop: stop(), stops))
        self.console.print("the servers are stopped; open the pages again with `unmask ui start`", soft_wrap=True)


def _quality(frame: pl.DataFrame, stream: Stream, live: Follower) -> dict[str, float | None]:
    """Precision and recall of the alerts, and average precision of the scores, against the truth."""
    if stream.labels is None or stream.labels.column not in frame.columns:
        return {"alert_precision": None, "alert_recall": None, "average_precision": None}
    from sklearn.metrics import average_precision_score, precision_score, recall_score

    ids = frame[stream.event_id].cast(pl.String)
    truth_of = dict(zip(ids, frame[stream.labels.column], strict=True))
    scores = list(live.scores.values())
    truth = np.array([truth_of[s.event_id] for s in scores], np.int8)
    alert = np.array([s.alert for s in scores], np.int8)
    return {
        "alert_precision": round(float(precision_score(truth, alert, zero_division=0)), 4),
        "alert_recall": round(float(recall_score(truth, alert, zero_division=0)), 4),
        "average_precision": round(float(average_precision_score(truth, [s.score for s in scores])), 4),
    }


def _label_delay_ms(stream: Stream) -> int:
    return stream.labels.maturity_ms if stream.labels else 0


def _fitting_stream(folder: Path) -> Path:
    """The shipped stream file whose fields are all columns of the folder's Parquet files."""
    files = simulate.past_files(folder)
    if not files:
        raise UnmaskError(f"{folder} has no .parquet or .csv files; give a folder of them with --data")
    columns = set(read_table(files[0]).frame.columns)
    for path in sorted(SHIPPED.glob("*.toml")):
        if {f.name for f in stream_file.load(path).fields} <= columns:
            return path
    raise StreamFileError(
        f"no shipped stream file fits {folder} (its columns: {', '.join(sorted(columns))}); "
        "write one and give it with --stream"
    )


def _flat(values: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    rows = []
    for name, value in values.items():
        rows += _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else [(prefix + name, value)]
    return rows


def _empty(folder: Path) -> None:
    """Forget the last demo's records."""
    import shutil

    shutil.rmtree(folder, ignore_errors=True)
