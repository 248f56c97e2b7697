"""`unmask label`, `labels`, `suppress`, `unsuppress`, `suppressions`: what a fraud team says about events."""

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from flows.cli.options import ByOption, StreamOption, settings, stream_of, time_ms
from flows.cli.terminal import out
from flows.screen import clean, json_line, plain
from pipelines.errors import UnmaskError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from flows.serve.labels import Report
    from pipelines.contracts.stream import Stream

app = typer.Typer()

EntityOption = Annotated[str, typer.Option(metavar="NAME=ID", help="An entity of the stream file, and its id.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object per line.")]


def _labelled_stream(given: "Path | None") -> "Stream":
    spec = stream_of(given)
    if spec.labels is None:
        raise UnmaskError(f"stream {spec.name} has no labels; add a [labels] table to its stream file")
    return spec


@app.command(rich_help_panel="Live scoring")
def label(
    event_id: Annotated[str, typer.Argument(help="Id of the event, as the alert shows it.")],
    value: Annotated[int, typer.Argument(min=0, max=1, metavar="0|1", help="1: fraud. 0: not fraud, or a correction.")],
    by: ByOption,
    stream: StreamOption = None,
    source: Annotated[str, typer.Option(help="Kind of source; `sources` in the stream file may rank it.")] = "analyst",
    why: Annotated[str | None, typer.Option(help="The reason; it is kept with the label.")] = None,
) -> None:
    """Report whether an event was fraud. The label goes to the label topic of the stream.

    [bold]Example[/bold]  unmask label 1236700 1 --stream handbook --source chargeback --why "case 4711"
    """
    spec = _labelled_stream(stream)
    from flows.serve.labels import send_label

    here = settings()
    send_label(here.connection(), spec, here.lake(spec), event_id=event_id, label=value, source=source, by=by, why=why)
    out.print(f"Sent label {value} of event {plain(event_id)} to {spec.topic('labels')}.")


@app.command(rich_help_panel="Live scoring")
def labels(
    event_id: Annotated[str, typer.Argument(help="Id of the event, as the alert shows it.")],
    stream: StreamOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show every label of an event, who reported it, and which one holds. What is new is ingested first.

    The label of the strongest source holds (`sources` in the stream file), among equals the one that arrived last.

    [bold]Example[/bold]  unmask labels 1236700 --stream handbook
    """
    from flows import progress
    from flows.serve.labels import labels_of_event
    from pipelines.contracts.messages import encode

    spec, here = _labelled_stream(stream), settings()
    with progress.shown("ingest") as report:
        found = labels_of_event(
            here.connection(), spec, here.lake(spec), event_id,
            progress=lambda done, n: report(done / max(n, 1), f"{done:,} of {n:,} records"),
        )  # fmt: skip
    if as_json:
        for one in found:
            sys.stdout.write(json_line(encode(one).decode()) + "\n")
    elif found:
        _show_labels(found)
    else:
        out.print(f"Event {plain(event_id)} has no label.")


@app.command(rich_help_panel="Live scoring")
def suppress(
    entity: EntityOption,
    until: Annotated[str, typer.Option(help="When alerts come again: 2026-12-24 or 2026-12-24T12:00Z.")],
    why: Annotated[str, typer.Option(help="The reason; it is kept with the order and each suppressed alert.")],
    by: ByOption,
    stream: StreamOption = None,
) -> None:
    """Publish no full alerts of an entity until a time: its scores over the threshold become records of one line.

    Nothing is lost: the scores are marked as alerts all the same, and each record on the alerts topic names who
    suppressed it and why. The scorers follow through Kafka within seconds, each on its own. A second order for the
    same entity replaces the first.

    [bold]Example[/bold]  unmask suppress --entity customer_id=4711 --until 2026-12-24 --why "known travel"
    """
    from flows.serve import suppressing

    spec, until_ms = stream_of(stream), time_ms(until)
    if until_ms is None:
        raise UnmaskError("--until is empty; write 2026-12-24 or 2026-12-24T12:00Z")
    done = suppressing.suppress(settings().connection(), spec, named=entity, until_ms=until_ms, by=by, why=why)
    out.print(f"Ordered: {plain(done)}", soft_wrap=True, highlight=False)


@app.command(rich_help_panel="Live scoring")
def unsuppress(
    entity: EntityOption,
    by: ByOption,
    stream: StreamOption = None,
    why: Annotated[str, typer.Option(help="The reason; it is kept with the order.")] = "by hand",
) -> None:
    """Publish alerts of an entity again, before the time that was given for its suppression.

    [bold]Example[/bold]  unmask unsuppress --entity customer_id=4711 --why "back from travel"
    """
    from flows.serve import suppressing

    done = suppressing.unsuppress(settings().connection(), stream_of(stream), named=entity, by=by, why=why)
    out.print(f"Ordered: {plain(done)}", soft_wrap=True, highlight=False)


@app.command(rich_help_panel="Live scoring")
def suppressions(stream: StreamOption = None, as_json: JsonOption = False) -> None:
    """Show whose alerts are suppressed now, until when, by whom and why; the one that ends first comes first.

    [bold]Example[/bold]  unmask suppressions --stream payments
    """
    from flows.serve import suppressing
    from pipelines.contracts.messages import encode

    spec = stream_of(stream)
    found = suppressing.suppressions(settings().connection(), spec)
    if as_json:
        for one in found:
            sys.stdout.write(json_line(encode(one).decode()) + "\n")
    elif found:
        rows = [(f"{one.entity} {one.id}", one.until, one.by, one.at, one.why) for one in found]
        _table(("entity", "until", "by", "since", "why"), rows)
    else:
        out.print(f"No alerts of stream {plain(spec.name)} are suppressed.")


def _show_labels(found: "list[Report]") -> None:
    rows = [
        (f"{one.label}", one.source, one.by or "–", one.labelled_at, one.arrived, one.in_effect, one.why or "",
         "holds" if one.holds else "")
        for one in found
    ]  # fmt: skip
    _table(("label", "source", "by", "labelled at", "arrived", "in effect from", "why", ""), rows)


def _table(names: "Sequence[str]", rows: "Sequence[Sequence[str]]") -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in names:
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*(Text(clean(cell)) for cell in row))
    out.print(table)
