"""The Prefect flows as commands: ingest, pretrain, finetune, promote, backtest."""

import getpass
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from flows.cli.options import (
    AsOfOption,
    StreamOption,
    moment_of,
    settings,
    stream_of,
    stream_path,
    stream_words,
)
from flows.cli.terminal import out
from flows.extras import require
from pipelines.errors import UnmaskError

app = typer.Typer()

SeedOption = Annotated[int, typer.Option(help="Seed of weights, masks and batches.")]


@app.command(rich_help_panel="Data")
def ingest(stream: StreamOption = None) -> None:
    """Copy what is new in Kafka to the lake, each record exactly once.

    [bold]Example[/bold]  unmask ingest --stream payments
    """
    path = stream_path(stream)
    report_to_prefect()
    from flows.ingest import ingest as flow

    counts = run_flow(flow, path).by_table
    out.print("Added to the lake: " + ", ".join(f"{n:,} {table}" for table, n in counts.items()) + ".")


@app.command(rich_help_panel="Data")
def maintain_lake(
    stream: StreamOption = None,
    keep_days: Annotated[int, typer.Option(min=1, help="For so many days, older versions stay readable.")] = 7,
) -> None:
    """Merge small files of the lake and delete what older versions of its tables needed. Rows stay.

    [bold]Example[/bold]  unmask maintain-lake --stream payments
    """
    path = stream_path(stream)
    report_to_prefect()
    from flows.maintain_lake import maintain_lake as flow

    for table, one in run_flow(flow, path, keep_days=keep_days).items():
        _print(f"{table}: {one.before} files, now {one.after}; {one.deleted} old ones deleted.")


@app.command(rich_help_panel="Data")
def deploy(
    stream: StreamOption = None,
    paused: Annotated[bool, typer.Option("--paused", help="Create the schedules, but start no runs yet.")] = False,
) -> None:
    """Create or update the deployments of a stream on the Prefect server: ingest, training, promotion and the others.

    Start a worker to run them: prefect worker start --pool unmask

    [bold]Example[/bold]  unmask deploy --stream payments
    """
    path = stream_path(stream)
    report_to_prefect()
    from flows import deployments

    done = deployments.deploy(path, paused=paused)
    width = max(len(one.name) for one in done)
    _print(*(f"{one.name:{width}}  {one.schedule}" for one in done))
    api = os.environ["PREFECT_API_URL"]
    _print(f"Next: PREFECT_API_URL={api} prefect worker start --pool {deployments.POOL}")


@app.command(rich_help_panel="Models")
def pretrain(stream: StreamOption = None, as_of: AsOfOption = None, seed: SeedOption = 0) -> None:
    """Train the encoder on the events of the lake; needs no labels. An interrupted run resumes from its checkpoint.

    Several processes of torch's launcher train together, one for each GPU or share of the cores.

    [bold]Examples[/bold]

    unmask pretrain --stream handbook --as-of 2018-07-01

    torchrun --nproc-per-node 2 -m flows.cli pretrain --stream handbook
    """
    path, spec, until = stream_path(stream), stream_of(stream), moment_of(as_of)
    if os.environ.get("TORCHELASTIC_RUN_ID") and os.environ["RANK"] != "0":
        from flows.together import help_to_train

        help_to_train()
        return
    report_to_prefect()
    from flows.pretrain import pretrain as flow

    run_id = run_flow(flow, path, as_of=until, seed=seed)
    _print(
        f"The encoder is trained. It is in MLflow run {run_id}, experiment {spec.name}/pretrain at "
        f"{settings().tracking_uri()}.",
        f"Next: unmask finetune {stream_words(stream)}",
    )


@app.command(rich_help_panel="Models")
def finetune(
    stream: StreamOption = None,
    as_of: AsOfOption = None,
    seed: SeedOption = 0,
    encoder_run: Annotated[
        str | None, typer.Option(help="MLflow run whose encoder to use; default the newest finished pretrain run.")
    ] = None,
    label_curve: Annotated[
        bool, typer.Option("--label-curve", help="Also plot what fewer labels give; takes about twice as long.")
    ] = False,
) -> None:
    """Train the head on the labels known so far, if any; compare with baselines and register the model as candidate.

    [bold]Examples[/bold]

    unmask finetune --stream payments

    unmask finetune --stream handbook --as-of 2018-07-01 --encoder-run 5f2c9e0d7a4b4c0f8d1e2b3a4c5d6e7f
    """
    path, spec, until = stream_path(stream), stream_of(stream), moment_of(as_of)
    report_to_prefect()
    from flows.finetune import finetune as flow
    from flows.settings import registry_name

    version = run_flow(flow, path, as_of=until, seed=seed, encoder_run=encoder_run, label_curve=label_curve)
    _print(
        f"Version {version} of {registry_name(spec)} is the candidate. Its figures are in MLflow, experiment "
        f"{spec.name}/finetune at {settings().tracking_uri()}.",
        f"Next: unmask promote {stream_words(stream)}",
    )


@app.command(rich_help_panel="Models")
def promote(
    by: Annotated[str, typer.Option(default_factory=getpass.getuser, help="Who approves.", show_default="you")],
    stream: StreamOption = None,
    as_of: AsOfOption = None,
    force: Annotated[bool, typer.Option("--force", help="Promote the model even if a check fails.")] = False,
    approve: Annotated[
        bool, typer.Option("--approve", help='Approve it, where the stream file has `approval = "person"`.')
    ] = False,
) -> None:
    """Judge the newest model beside the champion on events whose labels neither has seen, and promote it.

    It becomes the challenger, then the champion, the model that serves. Exit code 1 if it is not the champion after it.

    [bold]Examples[/bold]

    unmask promote --stream payments

    unmask promote --stream payments --approve --by ann
    """
    path, until = stream_path(stream), moment_of(as_of)
    report_to_prefect()
    from flows.promote import promote as flow

    options = {"as_of": until, "force": force, "approved_by": by if approve or force else ""}
    decision = run_flow(flow, path, **options)
    for name, one in decision.checks.items():
        _print(f"  {'ok  ' if one.holds else 'FAIL'}  {name}: {one.seen}")
    _print(decision.words[0].upper() + decision.words[1:] + ".")
    if decision.promoted:
        _print(f"Next: unmask score {stream_words(stream)} --from latest")
    raise typer.Exit(0 if decision.promoted else 1)


@app.command(rich_help_panel="Models")
def monitor(
    stream: StreamOption = None,
    hours: Annotated[int, typer.Option(min=1, help="Compare so many of the newest hours.")] = 24,
) -> None:
    """Look for drift without labels: which fields are unlike those that the champion was trained on.

    Exit code 1 if a field or the score has moved, or fewer of the alerts are frauds than before.

    [bold]Example[/bold]  unmask monitor --stream payments
    """
    path, spec = stream_path(stream), stream_of(stream)
    report_to_prefect()
    from flows.monitor import monitor as flow

    found = run_flow(flow, path, hours=hours)
    for one in found.drift.moved if found.drift else ():
        surprise = "" if one.surprise is None else f", surprise {one.surprise:+.3f} nats"
        _print(f"  {'MOVED' if one.has_moved else 'ok   '}  {one.name}: stability index {one.stability:.3f}{surprise}")
    _print(found.words[0].upper() + found.words[1:] + ".", f"Report: {settings().monitor_folder(spec) / 'drift.html'}")
    if found.needs_training:
        _print(f"Next: unmask retrain {stream_words(stream)}")
    raise typer.Exit(1 if found.needs_training else 0)


@app.command(rich_help_panel="Models")
def retrain(
    stream: StreamOption = None, why: Annotated[str, typer.Option(help="The reason; it is in the log of the run.")] = ""
) -> None:
    """Pretrain, fine-tune and promote, one after the other. Exit code 1 if the new model is not the champion after it.

    [bold]Example[/bold]  unmask retrain --stream payments --why "the shop has changed its categories"
    """
    path = stream_path(stream)
    report_to_prefect()
    from flows.retrain import retrain as flow

    decision = run_flow(flow, path, why=why)
    _print(decision.words[0].upper() + decision.words[1:] + ".")
    raise typer.Exit(0 if decision.promoted else 1)


@app.command(rich_help_panel="Models")
def backtest(
    stream: StreamOption = None,
    since: Annotated[
        str | None,
        typer.Option("--from", help="Start of the period, e.g. 2018-07-01; default the training's end."),
    ] = None,
    until: Annotated[str | None, typer.Option("--to", help="End of the period; default the end of the lake.")] = None,
    models: Annotated[
        list[str] | None,
        typer.Option("--model", help="champion, challenger, candidate or a digest (12 or more digits); repeatable."),
    ] = None,
    budgets: Annotated[
        list[str] | None,
        typer.Option(
            "--budget",
            help="model (its own threshold), a share such as 0.005, alerts a day such as 40/day, or costs such as "
            "cost:200:5 (a miss, a review); repeatable.",
        ),
    ] = None,
    capacity: Annotated[
        int | None, typer.Option(min=1, help="Cases that people review a day, the highest first; default all.")
    ] = None,
    value: Annotated[str | None, typer.Option(help="Number field that is the money of an event, e.g. amount.")] = None,
    window: Annotated[
        float, typer.Option(min=0.01, help="Days before the period from whose events budgets set thresholds.")
    ] = 14.0,
    baselines: Annotated[
        bool, typer.Option("--baselines", help="Also compare the first model with baselines trained before the period.")
    ] = False,
    allow_seen: Annotated[
        bool,
        typer.Option("--allow-seen", help="Test models that may know the period from training; they are marked."),
    ] = False,
    to_file: Annotated[Path | None, typer.Option("--out", help="Write the report to this HTML file.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Replay a past period from the lake: what models would have caught with which budget, when, at what workload.

    Every event that arrived in the period is scored as the live scorer scores it; where a model was live, its scores
    are compared with those published. Exit code 1 if they differ by more than 1e-5 or an alert differs.

    [bold]Examples[/bold]

    unmask backtest --stream handbook --from 2018-07-01 --to 2018-07-08

    unmask backtest --stream payments --model champion --model challenger --budget model --budget 40/day --capacity 40
    --value amount --out backtest.html
    """
    path, names, wanted = stream_path(stream), models or ["champion"], budgets or ["model"]
    from flows.backtesting.budgets import budget_of

    begin, end = moment_of(since), moment_of(until)
    for text in wanted:
        budget_of(text)
    report_to_prefect()
    from flows.backtest import backtest as flow
    from flows.backtesting import shown

    found = run_flow(
        flow, path, since=begin, until=end, models=names, budgets=wanted, capacity=capacity, value=value,
        window_days=window, with_baselines=baselines, allow_seen=allow_seen,
    )  # fmt: skip
    if to_file:
        shown.write(found, to_file)
    shown.show(found, out, as_json=as_json)
    raise typer.Exit(0 if found.holds else 1)


def report_to_prefect() -> None:
    """Let the flow that is imported next report to the Prefect server; before Prefect reads its settings."""
    from flows.local import servers

    require("flows")
    os.environ.update(settings().prefect_environment())
    os.environ.update(servers.NO_PREFECT_CONSOLE)


def run_flow(flow: Any, path: Path, **options: Any) -> Any:
    """Run a flow in this process, once; its run is on the Prefect page.

    Raises:
        UnmaskError: another run of it is going, or Prefect stopped answering.
    """
    from httpx import HTTPError
    from prefect.exceptions import CancelledRun

    try:
        return flow.with_options(retries=0)(path, **options)
    except CancelledRun as error:
        raise UnmaskError(str(error)) from error
    except HTTPError as error:
        api = os.environ["PREFECT_API_URL"]
        sys.stderr.write("\n")  # Prefect's own log message about it lacks the end of its line
        raise UnmaskError(f"Prefect at {api} stopped answering ({type(error).__name__}); run it again") from error


def _print(*lines: str) -> None:
    for line in lines:
        out.print(line, soft_wrap=True, markup=False, highlight=False)
