"""One run of the demo: its steps in order, and the servers that it starts and stops."""

import json
import os
import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path

import polars as pl
from rich.console import Console

from flows.demo import figures, live, show, source
from flows.demo.figures import Figures
from flows.demo.follower import Follower
from flows.demo.live import LiveRun
from flows.demo.source import N_PARTITIONS, Source
from flows.demo.steps import Steps
from flows.local import kafka_server, servers
from flows.settings import Settings, registry_name
from models.ship import registry
from pipelines.contracts.stream import TOPICS, Stream
from pipelines.errors import BrokerError, LoginError
from pipelines.kafka import topics
from pipelines.kafka.connection import Connection
from pipelines.lake import audit
from pipelines.play import producer

ATTEMPTS = 30  # of ten seconds each: for a broker that runs to answer


class Demo:
    """One run of the demo.

    Args:
        data: folder of past events to replay; None simulates payments.
        stream_file: stream file of the folder; None takes the shipped one that fits.
        out: folder of summary.json, the stream file and the scorer's log.
        keep: leave servers and topics up, also after a failure.
        rate: live events per second.
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
        self._data, self._given, self._out = data, stream_file, out
        self._keep, self._rate, self._seed, self._console = keep, rate, seed, console
        self._steps = Steps(console)
        self._broker: kafka_server.Broker | None = None
        self._servers_were_up = False
        self._topics: list[str] = []  # created by this run

    def run(self) -> bool:
        """Run all steps; True if every event is accounted for and every score is the same offline and live."""
        self._out.mkdir(parents=True, exist_ok=True)
        events = self._events()
        try:
            self._start_servers()
            self._history(events)
            self._train(events)
            came = self._live(events)
            measured = self._measure(events, came)
            target = self._out / "summary.json"
            target.write_text(json.dumps(measured.summary(), indent=2) + "\n")
            show.alerts(self._console, came)
            show.table(self._console, measured)
            show.explanations(self._console, measured, events)
            show.verdict(self._console, measured)
            self._console.print(f"All figures are in {target}.", soft_wrap=True, highlight=False)
            return measured.holds
        finally:
            self._stop()

    @property
    def _stream_file(self) -> Path:
        return self._out / "stream.toml"

    @property
    def _connection(self) -> Connection:
        return Settings().connection()

    def _events(self) -> Source:
        doing = (
            f"reading {self._data}" if self._data else f"simulating card payments of {source.SIMULATED['days']} days"
        )
        with self._steps.step("Events", doing) as step:
            events = source.read(data=self._data, given=self._given, target=self._stream_file, seed=self._seed)
            step.outcome = (
                f"{len(events.frame):,} events; the first {events.n_history:,} are the past, the next "
                f"{events.n_live:,} are played live."
            )
        return events

    def _start_servers(self) -> None:
        settings = Settings()
        self._servers_were_up = servers.find_servers(settings.ui_folder) is not None
        folder = settings.demo_kafka_folder
        if kafka_server.find_broker(folder) is not None:
            kafka_server.stop_broker(folder)
        shutil.rmtree(folder, ignore_errors=True)  # the records of the last demo
        with self._steps.step("Servers", "starting Kafka, MLflow and Prefect") as step, ThreadPoolExecutor(1) as pool:
            starting = pool.submit(servers.start_servers, settings.ui_folder, log=self._steps.note)
            try:
                self._broker = kafka_server.start_broker(folder, log=self._steps.note)
                started = starting.result()
            except BaseException:
                if not self._keep:
                    self._stop_pages()  # the waiting start notices that its servers have ended
                raise
            os.environ |= {
                **servers.NO_CALLS_HOME,
                **servers.NO_PREFECT_CONSOLE,
                "KAFKA_BOOTSTRAP_SERVERS": self._broker.bootstrap,
                "MLFLOW_TRACKING_URI": started.mlflow_uri,
                "PREFECT_API_URL": started.prefect_api,
                "PREFECT_HOME": str((settings.ui_folder / "prefect").resolve()),
            }
            self._await_broker()
            step.outcome = "All three answer."

    def _await_broker(self) -> None:
        """Wait until the broker answers, as long as it runs."""
        assert self._broker is not None
        for attempt in range(1, ATTEMPTS + 1):
            try:
                topics.wait_until_up(self._connection, deadline_s=10)
                return
            except LoginError:
                raise
            except BrokerError:
                ours = self._broker.kind != "external"
                runs = ours and kafka_server.find_broker(self._broker.folder) is not None
                if attempt == ATTEMPTS or not runs:
                    raise

    def _history(self, events: Source) -> None:
        stream = events.stream
        with self._steps.step("History", f"sending {events.n_history:,} past events to Kafka") as step:
            producer.create_stream_topics(self._connection, stream, n_partitions=N_PARTITIONS, append_time=False)
            self._topics = [stream.topic(kind) for kind in TOPICS]
            played = producer.Replayer(self._connection, stream, n_partitions=N_PARTITIONS).play(
                events.frame,
                label_delay_ms=events.label_delay_ms,
                until_ms=events.live_from_ms,
                seed=self._seed,
                progress=lambda done, n: step.report(done / max(n, 1), f"{done:,} of {n:,} events and labels"),
            )
            step.outcome = f"{played.n_events:,} events and {played.n_labels:,} labels are in Kafka."

    def _train(self, events: Source) -> None:
        file, name = self._stream_file, events.stream.name
        as_of = datetime.fromtimestamp(events.live_from_ms / 1000, UTC)
        with self._steps.step("Ingest", "copying the history from Kafka to the lake") as step:
            from flows.ingest import ingest

            counts = ingest.with_options(retries=0)(file)
            step.outcome = f"{counts.n_events:,} events and {counts.n_labels:,} labels are in the lake."
        with self._steps.step("Pretrain", "training the encoder to predict hidden fields, without labels") as step:
            from flows.pretrain import pretrain

            run_id = pretrain.with_options(retries=0)(file, as_of=as_of, seed=self._seed)
            step.outcome = f"The encoder is trained (MLflow experiment {name}/pretrain, run {run_id[:8]})."
        doing = "training the head on the labels known by now, and comparing it with baselines"
        with self._steps.step("Finetune", doing) as step:
            from flows.finetune import finetune

            version = finetune.with_options(retries=0)(file, as_of=as_of, seed=self._seed)
            step.outcome = f"Version {version} of the model is the candidate (MLflow experiment {name}/finetune)."
        with self._steps.step(
            "Promote", "judging the model on labels that it has not seen, and making it the champion"
        ) as step:
            from flows.promote import promote

            words = promote.with_options(retries=0)(file, as_of=as_of, force=True).words
            step.outcome = f"{words[0].upper()}{words[1:]}."

    def _live(self, events: Source) -> LiveRun:
        stream = events.stream
        with ExitStack() as running:
            with self._steps.step("Scorer", "starting the live scorer; it processes the history first") as step:
                process = running.enter_context(live.scorer(self._stream_file, stream, self._out))
                step.outcome = "It has processed the history and waits for events."
            follower = Follower(self._connection, stream)
            follower.start()
            running.callback(follower.stop)
            doing = (
                f"sending {events.n_live:,} events at {self._rate:,.0f}/s, plus {live.BROKEN_SHARE:.1%} "
                f"broken and {live.DUPLICATE_SHARE:.1%} repeated ones"
            )
            with self._steps.step("Live", doing) as step:
                came = live.play(process, events, follower, rate=self._rate, seed=self._seed, report=step.report)
                step.outcome = f"{came.n_sent:,} events sent, {len(came.scores):,} scores read."
        return came

    def _measure(self, events: Source, came: LiveRun) -> Figures:
        from flows.ingest import ingest
        from flows.serve.model import model_of

        stream, settings = events.stream, Settings()
        with self._steps.step("Audit", "comparing what was published with the events, by offsets") as step:
            books = audit.reconcile(self._connection, stream)
            step.outcome = f"{books.n_events:,} events were checked."
        with self._steps.step("Ingest", "copying the live events and scores to the lake") as step:
            counts = ingest.with_options(retries=0)(self._stream_file)
            step.outcome = f"{counts.n_events:,} events and {counts.n_scores:,} scores were added."
        with self._steps.step("Recompute", "computing every live score again from the lake") as step:
            skew = audit.skew_audit(
                settings.lake(stream),
                stream,
                settings.features(stream),
                models=lambda digest: model_of(settings, stream, digest),
                since=books.since,
                progress=lambda done, n: step.report(done / max(n, 1), f"{done:,} of {n:,} events"),
            )
            step.outcome = f"{skew.n_model_checked:,} scores were recomputed."
        backtest: Mapping[str, float] = self._backtest(events) if events.has_truth else {}
        assert self._broker is not None
        return Figures(
            broker=f"{self._broker.version} at {self._broker.bootstrap}",
            live=came,
            books=books,
            skew=skew,
            quality=figures.quality_of(events, came),
            validation_ap=_of_champion(stream, "validation_ap"),
            validation_ap_delayed=_of_champion(stream, "validation_ap_delayed"),
            backtest=backtest,
            seconds=self._steps.seconds,
        )

    def _backtest(self, events: Source) -> Mapping[str, float]:
        """The champion and baselines on the live part, against a truth whose labels have not arrived yet."""
        stream, truth = events.stream, self._out / "truth.parquet"
        assert stream.labels is not None
        columns = [
            pl.col(stream.event_id).cast(pl.String).alias("event_id"),
            pl.col(stream.labels.column).alias("label"),
        ]
        events.frame.select(columns).write_parquet(truth)
        with self._steps.step(
            "Backtest", "training baselines on the history and comparing them on the live events"
        ) as step:
            from flows.backtest import backtest

            found = backtest.with_options(retries=0)(
                self._stream_file,
                since=datetime.fromtimestamp(events.live_from_ms / 1000, UTC),
                until=datetime.fromtimestamp(events.live_until_ms / 1000, UTC),
                with_baselines=True,
                truth=truth,
                seed=self._seed,
            )
            step.outcome = f"It is in MLflow, experiment {stream.name}/backtest."
        return found.comparison

    def _stop(self) -> None:
        """Stop all servers in parallel, and report those that are still running."""
        servers.drain_prefect()
        if not self._keep:
            self._stop_servers()
        found = servers.find_servers(Settings().ui_folder)
        if found is None:
            self._say("MLflow and Prefect are stopped. `unmask ui start` opens them again, with all runs.")
        else:
            self._say(f"MLflow:  {found.mlflow.url}{servers.MLFLOW_PAGE}")
            self._say(f"Prefect: {found.prefect.url}")
        if self._keep:
            self._say("Stop what is still running with `unmask kafka stop` and `unmask ui stop`.")
            if self._topics:
                self._say(f"The topics stay: unmask alerts --stream {self._stream_file}")

    def _stop_servers(self) -> None:
        if self._broker is not None and self._broker.kind == "external" and self._topics:
            topics.delete_topics(self._connection, self._topics)
        stops: list[Callable[[], None]] = [self._stop_pages]
        if self._broker is not None:
            stops.append(self._broker.stop)
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(lambda stop: stop(), stops))

    def _say(self, line: str) -> None:
        self._console.print(line, soft_wrap=True, highlight=False, markup=False)

    def _stop_pages(self) -> None:
        if not self._servers_were_up:
            servers.stop_servers(Settings().ui_folder)


def _of_champion(stream: Stream, name: str) -> float | None:
    """A figure of the champion's training; None if it was not measured, as without labels."""
    champion = registry.version_of(registry_name(stream), "champion", tracking_uri=Settings().tracking_uri())
    found = champion[1].get(name) if champion else None
    return None if found is None else float(found)
