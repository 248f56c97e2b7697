"""The commands `unmask init`, `check` and `try`; slow imports are deferred until one of them runs."""

import os
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from flows.screen import clean
from pipelines.errors import UnmaskError

MAX_THREADS = 2  # of torch

out = Console(soft_wrap=True, highlight=False, markup=False)
err = Console(stderr=True, soft_wrap=True, highlight=False, markup=False)

FileArgument = Annotated[Path, typer.Argument(metavar="FILE", help="CSV or Parquet file of past events.")]
StreamArgument = Annotated[Path, typer.Argument(metavar="STREAM", help="Stream file (TOML), e.g. from `unmask init`.")]


def add_to(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    for name, command in (("init", init), ("check", check), ("try", try_)):
        app.command(name, rich_help_panel="First steps")(command)


def init(
    file: FileArgument,
    to: Annotated[Path | None, typer.Option(help="Where to write the stream file; default NAME.toml here.")] = None,
    name: Annotated[str | None, typer.Option(help="Name of the stream; default the file's.")] = None,
    time_from_rows: Annotated[
        bool, typer.Option("--time-from-rows", help="Use the order of the rows as time if no column has one.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the stream file.")] = False,
) -> None:
    """Guess a stream file from a file of past events, and explain each guess. Needs no server.

    [bold]Examples[/bold]

    unmask init payments.csv

    unmask init logins.parquet --to streams/logins.toml --name logins
    """
    from flows.offline.init import guess
    from pipelines.contracts.stream_file import parse

    found = guess(file, name=name, time_from_rows=time_from_rows)
    target = to or Path(f"{parse(found.text).name}.toml")
    if target.exists() and not force:
        raise UnmaskError(f"{target} exists; give another name with --to, or overwrite it with --force")
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(found.text, encoding="utf-8")
    for line in (*found.columns, *found.notes):
        out.print(clean(line))
    out.print(f"\nThe stream file is {target}. Look at it, then run: unmask try {target} {file}")


def check(stream: StreamArgument, file: FileArgument) -> None:
    """Report every problem between a stream file and a file of past events; exit code 1 if there is any.

    [bold]Example[/bold]  unmask check payments.toml payments.csv
    """
    from flows.offline.check import check as check_file

    found = check_file(stream, file)
    for broken in found.refused:
        at = f" of {broken.field}" if broken.field else ""
        out.print(
            clean(
                f"refused, {broken.rule}{at}: {broken.n_rows:,} of {found.n_rows:,} rows, e.g. row {broken.row:,}: "
                f"{broken.detail}"
            )
        )
        out.print(f"  to fix it: {broken.fix}")
    for problem in found.problems:
        out.print(clean(problem, keep="\n"))
    for note in found.notes:
        out.print(clean(f"note: {note}"))
    if found.holds:
        out.print(f"\nThe file fits: all {found.n_rows:,} rows satisfy the contract.")
    elif found.n_accepted or found.refused:
        out.print(f"\n{found.n_accepted:,} of {found.n_rows:,} rows satisfy the contract.")
    raise typer.Exit(0 if found.holds else 1)


def try_(
    stream: StreamArgument,
    file: FileArgument,
    out_folder: Annotated[
        Path | None, typer.Option("--out", help="Folder for report.html; default try-NAME here.")
    ] = None,
    train_share: Annotated[
        float, typer.Option(help="Share of the events, the first in time, used for training. The others are scored.")
    ] = 0.7,
    seed: Annotated[int, typer.Option(help="Seed of training.")] = 0,
) -> None:
    """Train on the first part of a file, score the rest as in live scoring, and write a report. Needs no server.

    [bold]Examples[/bold]

    unmask try payments.toml payments.csv

    unmask try logins.toml logins.parquet --train-share 0.5 --out report
    """
    if not 0.1 <= train_share <= 0.95:
        raise UnmaskError(f"--train-share is {train_share:g}; it must be between 0.1 and 0.95")
    # Set before torch is loaded, so that waiting threads do not spin.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    import torch

    from flows import progress
    from flows.offline import report
    from flows.offline.check import findings
    from flows.offline.events import events_of
    from flows.offline.tryout import try_file
    from pipelines.contracts.stream_file import load
    from pipelines.play.table_file import read_table

    torch.set_num_threads(min(MAX_THREADS, os.cpu_count() or 1))
    spec = load(stream)
    err.print(f"reading {file}")
    table = read_table(file)
    events = events_of(spec, table)
    with progress.shown("try") as shown:
        tried = try_file(spec, events, train_share=train_share, seed=seed, announce=err.print, progress=shown)
    problems, notes = findings(table, events, tried.accepted)
    folder = out_folder or Path(f"try-{spec.name}")
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / "report.html"
    target.write_text(report.page(tried, file=file.name, stream_file=stream.name, notes=[*problems, *notes]), "utf-8")
    out.print(f"{clean(report.headline(tried))}. The report is {target}")
