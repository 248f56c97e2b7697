"""`unmask reconcile` and `unmask recover`: whether every event has its score, and what to do if the scorer stops."""

from typing import Annotated

import typer

from flows.cli.options import StreamOption, settings, stream_of, stream_words
from flows.cli.terminal import out
from flows.screen import plain
from pipelines.errors import UnmaskError

app = typer.Typer()


@app.command(rich_help_panel="Checks and recovery")
def reconcile(
    stream: StreamOption = None,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Keep running and check what comes, in bounded memory.")
    ] = False,
    every: Annotated[float, typer.Option(min=0.1, help="With --follow: seconds between two reports.")] = 10.0,
    start: Annotated[
        str,
        typer.Option("--from", help="With --follow, at its first start: earliest checks all events, latest new ones."),
    ] = "earliest",
    as_json: Annotated[bool, typer.Option("--json", help="With --follow: print one JSON object per line.")] = False,
) -> None:
    """Check that every event was scored, refused or is a duplicate, and that live and recomputed scores agree.

    With --follow, lost, doubled and foreign outcomes are reported as they are found, and the audit goes on; it does
    not recompute scores. Its next start continues where it stopped.

    Exit code 1 if a check does not hold, with --follow at the end.

    [bold]Examples[/bold]

    unmask reconcile --stream payments

    unmask reconcile --stream payments --follow --every 60
    """
    if follow:
        from flows.serve.auditing import follow_audit

        if start not in ("earliest", "latest"):
            raise UnmaskError(f"--from is {start!r}; it must be earliest or latest")
        holds = follow_audit(settings(), stream_of(stream), every_s=every, start=start, as_json=as_json)  # type: ignore[arg-type]
        raise typer.Exit(0 if holds else 1)
    from flows.serve.model import model_of
    from pipelines.lake import audit

    spec = stream_of(stream)
    here = settings()
    found = audit.reconcile(here.connection(), spec)
    out.print(found.words(), highlight=False)
    skew = audit.skew_audit(
        here.lake(spec),
        spec,
        here.features(spec),
        models=lambda digest: model_of(here, spec, digest),
        since=found.since,
        workers=here.workers(),
    )
    out.print(f"{skew.checked:,} scores of the lake were compared; {skew.equal:,} have equal features.")
    for model in skew.models:
        if model.why_not:
            out.print(f"  model {plain(model.digest[:12])}: [red]its scores were not recomputed[/red]: "
                      f"{plain(model.why_not)}")  # fmt: skip
        else:
            out.print(
                f"  model {plain(model.digest[:12])}: {model.n_checked:,} of {model.n_scores:,} scores recomputed, "
                f"{model.n_differs:,} of them differ by more than 1e-5"
            )
    if not found.n_scored_since:
        out.print("Nothing has been scored with the present features yet, so nothing was checked.")
    if skew.checked < found.n_scored_since:
        missing = found.n_scored_since - skew.checked
        out.print(f"{missing:,} scores are not in the lake yet; run `unmask ingest {stream_words(stream)}` and repeat.")
    raise typer.Exit(0 if found.holds and skew.holds and skew.checked >= found.n_scored_since else 1)


@app.command(rich_help_panel="Checks and recovery")
def recover(
    stream: StreamOption = None,
    yes: Annotated[bool, typer.Option("--yes", help="Carry out the plan instead of only showing it.")] = False,
) -> None:
    """Find out why the scorer does not start, and show what to do, what is kept and what is lost.

    Stop the scorer first, unless you have changed the features: then it goes on until their state is built, which takes
    the time shown; start it with the changed file afterwards. Nothing is changed without --yes.

    [bold]Examples[/bold]

    unmask recover --stream payments

    unmask recover --stream payments --yes
    """
    from flows import progress
    from pipelines.live.recover import Recovery

    spec = stream_of(stream)
    here = settings()
    recovery = Recovery(here.connection(), spec, snapshots=here.snapshots(spec), lake=here.lake(spec))
    n_done = 0
    while (plan := recovery.plan()) is not None:
        for title, words in plan.words(recovery.records_per_s()):
            out.print(f"[bold]{title:14s}[/bold]", end="")
            out.print(words, soft_wrap=True, highlight=False, markup=False)
        if not yes:
            first = "" if plan.name == "redefined" else "stop the scorer and "
            out.print(f"Nothing was changed. To carry this out, {first}add --yes.")
            raise typer.Exit(1)
        with progress.shown("recover") as report:
            recovery.carry_out(plan, on_progress=lambda done, n: report(done / max(n, 1), f"{done:,} of {n:,} records"))
        n_done += 1
    finding = "The recovery is complete" if n_done else "Nothing keeps the scorer from starting"
    out.print(f"{finding}. Next: unmask score {stream_words(stream)}", soft_wrap=True, highlight=False)
