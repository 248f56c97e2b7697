"""`unmask doctor`: what is reachable, what is wrong, and the command that fixes it."""

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from flows.cli.options import StreamOption, settings, stream_of, stream_words
from flows.cli.terminal import err, out
from flows.screen import json_line, plain

if TYPE_CHECKING:
    from flows.doctor.finding import Finding

app = typer.Typer()
COLOURS = {"ok": "green", "warning": "yellow", "error": "red"}


@app.command(rich_help_panel="Checks and recovery")
def doctor(
    stream: StreamOption = None,
    entities: Annotated[int | None, typer.Option(min=1, help="Expected entities of the most numerous kind.")] = None,
    events_per_s: Annotated[float | None, typer.Option(min=0.001, help="Expected events per second, at peak.")] = None,
    events_per_day: Annotated[float | None, typer.Option(min=1, help="Expected events per day.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Check versions, servers, topics, retention, disk and scorers, and plan memory, CPU and partitions.

    Each problem comes with the command that fixes it. Nothing is changed. The output has no passwords.

    Exit code 1 if there is an error; warnings alone are 0.

    [bold]Examples[/bold]

    unmask doctor --stream payments

    unmask doctor --stream payments --entities 2000000 --events-per-s 3000
    """
    spec, here = stream_of(stream), settings()
    with err.status("Looking at versions, servers, topics and scorers"), _quiet("kafka"):
        from flows.doctor.examine import examine
        from flows.doctor.finding import Level
        from flows.doctor.sizing import Load

        load = Load(entities, events_per_s, events_per_day)
        found = examine(here, spec, stream_words(stream), load)
    n_errors = sum(one.level is Level.ERROR for one in found)
    if as_json:
        told = {"stream": spec.name, "errors": n_errors, "findings": [vars(one) for one in found]}
        out.print(json_line(json.dumps(told)), soft_wrap=True, highlight=False, markup=False)
    else:
        _show(found)
    raise typer.Exit(1 if n_errors else 0)


@contextmanager
def _quiet(name: str) -> Iterator[None]:
    """What a client logs of a server that does not answer is a finding already."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


def _show(found: "list[Finding]") -> None:
    section = ""
    for one in found:
        if one.section != section:
            section = one.section
            out.print(f"[bold]{section}[/bold]")
        level = f"[{COLOURS[one.level]}]{one.level:7}[/]"
        out.print(f"  {level} {plain(one.what)}: {plain(one.found)}", soft_wrap=True, highlight=False)
        if one.fix:
            out.print(f"          fix: {plain(one.fix)}", soft_wrap=True, highlight=False)
    n = {level: sum(one.level == level for one in found) for level in COLOURS}
    out.print(f"{n['error']} errors, {n['warning']} warnings, {n['ok']} checks hold.", highlight=False)
