"""The `unmask` command. Heavy imports wait until a command needs them, so that `--help` is quick."""

import errno
import logging
import os
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from flows.offline import commands as offline
from flows.screen import Formatter, clean, json_line, plain
from models.errors import ModelError
from pipelines.errors import FencedError, UnmaskError

if TYPE_CHECKING:
    from flows.settings import Settings
    from pipelines.contracts.stream import Stream

EXIT_CODES = """
[bold]Exit codes[/bold]  0 done · 1 the check does not hold · 2 your input or a server needs mending (the message says
how) · 3 another scorer has taken over · 4 a defect of unmask itself, its traceback in UNMASK_HOME/defects.log ·
130 Ctrl-C

[bold]Settings[/bold] come from the environment: UNMASK_HOME (default .unmask), UNMASK_STREAM, KAFKA_BOOTSTRAP_SERVERS,
KAFKA_SECURITY_PROTOCOL, KAFKA_SASL_MECHANISM, KAFKA_SASL_USERNAME, KAFKA_SASL_PASSWORD[_FILE], KAFKA_SSL_CAFILE,
MLFLOW_TRACKING_URI, PREFECT_API_URL.
"""

app = typer.Typer(
    help="Finds fraud and anomalies in streams of tabular events.\n" + EXIT_CODES,
    rich_markup_mode="rich",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
kafka_app = typer.Typer(help="A Kafka broker on this machine, for daily work.", no_args_is_help=True)
ui_app = typer.Typer(help="The MLflow and Prefect pages on this machine.", no_args_is_help=True)
app.add_typer(kafka_app, name="kafka")
app.add_typer(ui_app, name="ui")
offline.add_to(app)

out = Console()
err = Console(stderr=True)

# What a disk says that is full, read-only, or not what a path takes it for: not our defect.
DISK_ERRORS = {
    getattr(errno, name)
    for name in ("EACCES", "EPERM", "EROFS", "ENOSPC", "EDQUOT", "ENOTDIR", "EISDIR", "EEXIST", "ELOOP", "ENAMETOOLONG")
}
_NEWLINE = "\n"

StreamOption = Annotated[
    Path | None,
    typer.Option("--stream", "-s", envvar="UNMASK_STREAM", help="Stream file (TOML), or the name of a shipped one."),
]
AsOfOption = Annotated[
    str | None,
    typer.Option(help="Look back from this moment, e.g. 2018-07-01 or 2018-07-01T12:00Z; default now."),
]


@app.command()
def demo(
    data: Annotated[
        Path | None, typer.Option(help="Replay this folder of Parquet or CSV files instead of a simulated stream.")
    ] = None,
    stream: StreamOption = None,
    out_folder: Annotated[Path, typer.Option("--out", help="Where summary.json, plots and logs go.")] = Path("demo"),
    keep: Annotated[
        bool, typer.Option("--keep", help="Leave the servers and the scorer's topics up at the end.")
    ] = False,
    rate: Annotated[float, typer.Option(help="Live events a second.")] = 2_000.0,
    seed: Annotated[int, typer.Option(help="Of the simulated stream and of training.")] = 0,
) -> None:
    """Run the whole loop on this machine: history, training, live scoring, audit.

    [bold]Examples[/bold]

    unmask demo

    unmask demo --data path/to/handbook --keep
    """
    from flows.demo import Demo

    stream_file = _stream_path(stream) if stream and data else None
    holds = Demo(data=data, stream_file=stream_file, out=out_folder, keep=keep, rate=rate, seed=seed, console=out).run()
    raise typer.Exit(0 if holds else 1)


@kafka_app.command("start")
def kafka_start() -> None:
    """Start a broker (or find the one that runs) and print its address; exit code 2 where none can be had.

    [bold]Example[/bold]  export KAFKA_BOOTSTRAP_SERVERS=$(unmask kafka start)
    """
    from flows.local import kafka_server

    broker = kafka_server.start_broker(_settings().kafka_folder, log=err.print)
    out.print(broker.bootstrap)


@kafka_app.command("stop")
def kafka_stop() -> None:
    """Stop the broker, and one that `unmask demo --keep` left up; their data stays."""
    from flows.local import kafka_server

    stopped = [broker for folder in _settings().kafka_folders if (broker := kafka_server.stop_broker(folder))]
    out.print("\n".join(f"stopped {broker.version}" for broker in stopped) or "no broker was running")


@kafka_app.command("status")
def kafka_status() -> None:
    """Say what runs and where; exit code 1 where nothing does."""
    from flows.local import kafka_server

    running = [broker for folder in _settings().kafka_folders if (broker := kafka_server.find_broker(folder))]
    for broker in running:
        out.print(f"{broker.version} listens on {broker.bootstrap}, log {broker.log}", soft_wrap=True)
    if not running:
        out.print("no broker is running")
    raise typer.Exit(0 if running else 1)


@ui_app.command("start")
def ui_start() -> None:
    """Start the MLflow and Prefect servers (or find them) and print their pages.

    [bold]Example[/bold]  unmask ui start
    """
    from flows.local import servers

    servers.start_servers(_settings().ui_folder, log=out.print)


@ui_app.command("stop")
def ui_stop() -> None:
    """Stop them; what they know stays."""
    from flows.local import servers

    stopped = servers.stop_servers(_settings().ui_folder)
    out.print(f"stopped {' and '.join(stopped)}" if stopped else "the servers were not running")


@ui_app.command("status")
def ui_status() -> None:
    """Say what runs and where; exit code 1 where nothing does."""
    from flows.local import servers

    found = servers.find_servers(_settings().ui_folder)
    out.print(f"MLflow {found.mlflow.url}  Prefect {found.prefect.url}" if found else "the servers are not running")
    raise typer.Exit(0 if found else 1)


@app.command()
def simulate(
    stream: StreamOption = None,
    data: Annotated[
        Path | None, typer.Option(help="Replay this folder of Parquet or CSV files instead of simulating.")
    ] = None,
    to: Annotated[
        Path | None, typer.Option(help="Write the simulated stream to this folder as Parquet, not to Kafka.")
    ] = None,
    days: Annotated[int, typer.Option(min=1, help="Days of payments to simulate.")] = 30,
    customers: Annotated[int, typer.Option(min=1)] = 1_000,
    terminals: Annotated[int, typer.Option(min=1)] = 1_500,
    rate: Annotated[float | None, typer.Option(min=1, help="Events a second; default as fast as it goes.")] = None,
    seed: Annotated[int, typer.Option()] = 0,
) -> None:
    """Play a synthetic payment stream (or a folder of past events) into Kafka, labels following after their maturity.

    [bold]Examples[/bold]

    unmask simulate --to payments-data --days 60

    unmask simulate --stream handbook --data path/to/handbook --rate 500
    """
    from datetime import UTC, datetime

    from flows import progress
    from pipelines.play import producer
    from pipelines.play import simulate as simulator

    spec = _stream(stream if data else None, default="payments")
    frame = (
        simulator.read_folder(spec, data)
        if data
        else simulator.payments(
            seed=seed,
            n_customers=customers,
            n_terminals=terminals,
            days=days,
            start=datetime(2026, 1, 1, tzinfo=UTC),
        )
    )
    if to:
        to.mkdir(parents=True, exist_ok=True)
        frame.write_parquet(to / "events.parquet")
        out.print(f"{len(frame):,} events in {to / 'events.parquet'}")
        return
    connection = _settings().connection()
    producer.create_stream_topics(connection, spec, n_partitions=4, append_time=False)
    replayer = producer.Replayer(connection, spec, n_partitions=4)
    with progress.shown("simulate") as report:
        played = replayer.play(
            frame,
            label_delay_ms=spec.labels.maturity_ms if spec.labels else 0,
            rate=rate,
            seed=seed,
            progress=lambda done, n: report(done / max(n, 1), f"{done:,} of {n:,} events"),
        )
        replayer.finish()
    out.print(f"{played.n_events:,} events to {spec.topic('events')} in {played.wall_s:.1f} s")


@app.command()
def ingest(stream: StreamOption = None) -> None:
    """Flow: bring what is new in Kafka to the lake, exactly once.

    [bold]Example[/bold]  unmask ingest --stream payments
    """
    path = _stream_path(stream)
    _report_to_prefect()
    from flows.ingest import ingest as flow

    counts = _run_flow(flow, path)
    out.print(", ".join(f"{n:,} {name.removeprefix('n_')}" for name, n in vars(counts).items()))


@app.command()
def pretrain(stream: StreamOption = None, as_of: AsOfOption = None, seed: int = 0) -> None:
    """Flow: train the masked-feature encoder on the lake; goes on from its checkpoint if it was cut off.

    [bold]Example[/bold]  unmask pretrain --stream handbook --as-of 2018-07-01
    """
    path, as_of_ms = _stream_path(stream), _time_ms(as_of)
    _report_to_prefect()
    from flows.pretrain import pretrain as flow

    out.print(f"MLflow run {_run_flow(flow, path, as_of_ms=as_of_ms, seed=seed)}")


@app.command()
def finetune(stream: StreamOption = None, as_of: AsOfOption = None, seed: int = 0) -> None:
    """Flow: fine-tune the head on the labels there are (none will do), compare with baselines, register a challenger.

    [bold]Example[/bold]  unmask finetune --stream handbook --as-of 2018-07-01
    """
    path, as_of_ms = _stream_path(stream), _time_ms(as_of)
    _report_to_prefect()
    from flows.finetune import finetune as flow

    out.print(f"version {_run_flow(flow, path, as_of_ms=as_of_ms, seed=seed)} is the challenger")


@app.command()
def promote(
    stream: StreamOption = None,
    force: Annotated[bool, typer.Option("--force", help="Promote although the gate says no.")] = False,
) -> None:
    """Flow: let the challenger through the gate and make it the champion.

    [bold]Example[/bold]  unmask promote --stream payments
    """
    path = _stream_path(stream)
    _report_to_prefect()
    from flows.promote import promote as flow

    decision = _run_flow(flow, path, force=force)
    out.print(decision.words)
    raise typer.Exit(0 if decision.promoted else 1)


@app.command()
def backtest(
    stream: StreamOption = None,
    since: Annotated[str, typer.Option(help="First day of the test period, e.g. 2018-07-01.")] = "",
    until: Annotated[str | None, typer.Option(help="End of the test period; default the lake's end.")] = None,
) -> None:
    """Flow: the champion and the baselines on a period after their training, at full prevalence.

    [bold]Example[/bold]  unmask backtest --stream handbook --since 2018-07-01 --until 2018-07-08
    """
    path = _stream_path(stream)
    since_ms = _time_ms(since)
    if since_ms is None:
        raise UnmaskError("--since is required: the first day of the test period, e.g. --since 2018-07-01")
    _report_to_prefect()
    from flows.backtest import backtest as flow

    for name, figure in _run_flow(flow, path, since_ms=since_ms, until_ms=_time_ms(until)).items():
        out.print(f"{name:40s} {figure:.4f}")


@app.command()
def score(
    stream: StreamOption = None,
    start: Annotated[
        str | None,
        typer.Option(
            "--from",
            help="Where to begin the very first time: earliest or latest. Later starts go on from the progress.",
        ),
    ] = None,
    fault_at: Annotated[str | None, typer.Option(envvar="UNMASK_FAULT_AT", hidden=True)] = None,
) -> None:
    """The live scorer: every accepted event gets exactly one score. Runs until SIGTERM or Ctrl-C.

    [bold]Example[/bold]  unmask score --stream payments --from latest
    """
    if start not in (None, "earliest", "latest"):
        raise UnmaskError(f"--from must be earliest or latest, however: {start!r}")
    _show_log(logging.INFO, "%(asctime)s %(levelname)s %(name)s: %(message)s")
    from flows.serve.service import serve
    from pipelines import faults

    fault = faults.kill_at(fault_at) if fault_at else faults.no_fault
    serve(_settings(), _stream(stream), start=start, fault=fault)  # type: ignore[arg-type]


@app.command()
def alerts(
    stream: StreamOption = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with new alerts as they come.")] = False,
    last: Annotated[int, typer.Option("--last", "-n", min=0, help="How many past alerts to show first.")] = 5,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
) -> None:
    """Show alerts with their reasons.

    [bold]Examples[/bold]

    unmask alerts --stream payments --follow

    unmask alerts --last 100 --json > alerts.jsonl
    """
    from flows.serve import follow as following
    from pipelines.contracts.messages import encode

    for alert in following.alerts(_settings().connection(), _stream(stream), follow=follow, last=last):
        if as_json:
            sys.stdout.write(json_line(encode(alert).decode()) + "\n")
            sys.stdout.flush()
        else:
            out.print(following.panel(alert))


@app.command()
def label(
    event_id: Annotated[str, typer.Argument(help="The event's id, as the alert shows it.")],
    value: Annotated[int, typer.Argument(min=0, max=1, metavar="0|1", help="1 fraud, 0 takes a report back.")],
    stream: StreamOption = None,
    source: Annotated[str, typer.Option(help="Who says so.")] = "analyst",
) -> None:
    """Say whether an event was fraud; the label goes to the stream's label topic.

    [bold]Example[/bold]  unmask label 1236700 1 --stream handbook --source team-a
    """
    from flows.serve import follow as following

    settings, spec = _settings(), _stream(stream)
    if spec.labels is None:
        raise UnmaskError(f"stream {spec.name} has no labels; add a [labels] table to its stream file")
    following.send_label(
        settings.connection(), spec, settings.lake(spec), event_id=event_id, label=value, source=source
    )
    out.print(f"event {plain(event_id)}: label {value} sent to {spec.topic('labels')}")


@app.command()
def reconcile(stream: StreamOption = None) -> None:
    """Check that events = scored + refused + duplicates, by offsets, and that lake and live scores are equal.

    [bold]Example[/bold]  unmask reconcile --stream payments
    """
    from flows.serve.service import model_of
    from pipelines.lake import audit

    settings, spec = _settings(), _stream(stream)
    found = audit.reconcile(settings.connection(), spec)
    out.print(
        f"{found.n_events:,} events = {found.n_scored:,} scored + {found.n_refused:,} refused + "
        f"{found.n_duplicates:,} duplicates; {found.pending:,} more not scored yet"
    )
    for what, n in found.n_problems.items():
        if n:
            out.print(f"[red]{what}[/red]: {n:,}, first (partition, offset) {getattr(found, what)[:5]}")
    skew = audit.skew_audit(
        settings.lake(spec), spec, models=lambda digest: model_of(settings, spec, digest), since=found.since
    )
    out.print(f"skew audit of the ingested scores: checked {skew.checked:,}, features equal {skew.equal:,}")
    for model in skew.models:
        out.print(
            f"  model {plain(model.digest[:12])}: {model.n_scores:,} scores, {model.n_checked:,} computed again, "
            f"of which {model.n_differs:,} differ by more than 1e-5"
        )
        if model.why_not:
            out.print(f"  [red]none computed again[/red]: {plain(model.why_not)}")
    if not found.n_scored_since:
        out.print("no score was made under the present features yet: nothing was checked")
    if skew.checked < found.n_scored_since:
        missing = found.n_scored_since - skew.checked
        out.print(f"{missing:,} scores are not in the lake yet; run `unmask ingest` and check again")
    raise typer.Exit(0 if found.holds and skew.holds and skew.checked >= found.n_scored_since else 1)


@app.command()
def recover(
    stream: StreamOption = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do it; without, it is only told (exit code 1).")] = False,
) -> None:
    """Find what keeps the scorer from starting, tell what the way on keeps and loses, and go it. Stop the scorer first.

    [bold]Examples[/bold]

    unmask recover --stream payments

    unmask recover --stream payments --yes
    """
    from flows import progress
    from pipelines.live.recover import Recovery

    settings, spec = _settings(), _stream(stream)
    recovery = Recovery(settings.connection(), spec, snapshots=settings.snapshots(spec), lake=settings.lake(spec))
    done = 0
    while (plan := recovery.plan()) is not None:
        for title, words in plan.words(recovery.records_per_s()):
            out.print(f"[bold]{title:14s}[/bold]", end="")
            out.print(words, soft_wrap=True, highlight=False, markup=False)
        if not yes:
            out.print("Nothing was changed; to do it, stop the scorer and add --yes.")
            raise typer.Exit(1)
        with progress.shown("recover") as report:
            recovery.carry_out(plan, on_progress=lambda done, n: report(done / max(n, 1), f"{done:,} of {n:,} records"))
        out.print("done")
        done += 1
    out.print("Nothing keeps the scorer from starting: run `unmask score`." if not done else "Now run `unmask score`.")


def main() -> None:
    """Entry point: every error becomes one message and an exit code; SIGTERM ends a command as Ctrl-C does."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    _show_log(logging.WARNING, "%(levelname)s: %(message)s")
    try:
        app()
    except FencedError as error:
        _tell(str(error))
        sys.exit(3)
    except (UnmaskError, ModelError) as error:
        _tell(str(error))
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        if isinstance(error, OSError) and error.errno in DISK_ERRORS:
            _tell(f"{error.filename or 'a file'}: {error.strerror}; make room or give rights, or set UNMASK_HOME")
            sys.exit(2)
        _tell(f"a defect of unmask itself: {type(error).__name__}: {error} ({_keep_traceback(error)})")
        sys.exit(4)


def _show_log(level: int, form: str) -> None:
    """Our log on stderr; not by the root logger, which Prefect takes for itself."""
    handler = logging.StreamHandler()
    handler.setFormatter(Formatter(form))
    for name, least in (("flows", level), ("models", level), ("pipelines", level), ("kafka", logging.WARNING)):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(least)


def _tell(words: str) -> None:
    err.print(f"error: {clean(words, keep=_NEWLINE)}", style="red", highlight=False, markup=False, soft_wrap=True)


def _keep_traceback(error: Exception) -> str:
    """Append the traceback to UNMASK_HOME/defects.log, or show it where that cannot be; says where it is."""
    path = Path(os.environ.get("UNMASK_HOME") or ".unmask") / "defects.log"
    text = clean("".join(traceback.format_exception(error)), keep=_NEWLINE)
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with open(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600), "a", encoding="utf-8") as log:
            log.write(f"{time.strftime('%Y-%m-%dT%H:%M:%S%z')} {sys.argv[1:]}\n{text}\n")
    except OSError:
        sys.stderr.write(text)
        return "traceback above"
    return f"its traceback is in {path}; please report it"


def _settings() -> "Settings":
    from flows.settings import Settings

    return Settings()


def shipped_streams() -> dict[str, Path]:
    """Stream files that come with Unmask, by name."""
    return {path.stem: path for path in sorted((Path(__file__).parent / "streams").glob("*.toml"))}


def _stream_path(path: Path | None, *, default: str | None = None) -> Path:
    chosen = str(path) if path else default
    if chosen is None:
        raise UnmaskError(
            "which stream? Give --stream FILE or set UNMASK_STREAM; shipped are " + ", ".join(shipped_streams())
        )
    return shipped_streams().get(chosen, Path(chosen))


def _stream(path: Path | None, *, default: str | None = None) -> "Stream":
    from pipelines.contracts.stream_file import load

    return load(_stream_path(path, default=default))


def _report_to_prefect() -> None:
    """Let the flow that is imported next report to the Prefect server; before Prefect reads its settings."""
    from flows.local import servers

    os.environ.update(_settings().prefect_environment())
    os.environ.update(servers.NO_PREFECT_CONSOLE)


def _run_flow(flow: Any, path: Path, **options: Any) -> Any:
    """Run a flow in this process; its run is on the Prefect page."""
    from httpx import HTTPError
    from prefect.exceptions import CancelledRun

    try:
        return flow.with_options(retries=0)(path, **options)
    except CancelledRun as error:
        raise UnmaskError(str(error)) from error
    except HTTPError as error:
        api = os.environ["PREFECT_API_URL"]
        sys.stderr.write("\n")  # what Prefect's log says of it lacks the end of its line
        raise UnmaskError(f"Prefect at {api} stopped answering ({type(error).__name__}); run it again") from error


def _time_ms(text: str | None) -> int | None:
    """Milliseconds since 1970 of a day or a time, UTC where it names no zone."""
    from datetime import UTC, datetime

    if not text:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise UnmaskError(f"{text!r} is no day or time; write it like 2018-07-01 or 2018-07-01T12:00Z") from None
    return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000)


if __name__ == "__main__":
    main()
