"""`unmask explain`: an alert or a score reproduced from what came before its event."""

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from flows.cli.options import StreamOption, settings, stream_of
from flows.cli.terminal import out
from flows.screen import clean, json_line

if TYPE_CHECKING:
    from rich.table import Table

    from pipelines.model import Model
    from pipelines.operate.explain import Reproduction

app = typer.Typer()


@app.command(rich_help_panel="Checks and recovery")
def explain(
    alert_id: Annotated[
        str,
        typer.Argument(
            metavar="ALERT_ID",
            help="Id of an alert or review or its beginning, event id, or PARTITION:OFFSET of the event.",
        ),
    ],
    stream: StreamOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Reproduce the score of an event: rebuild the state before it, then its features, the score and the reasons.

    The state comes from the lake, from the newest snapshot before the event on. A score that is too new for the lake
    is ingested first. The score is recomputed with the model that it names.

    Exit code 0: all is equal (scores and reasons within 1e-5). Exit code 1: something differs or cannot be reproduced.

    [bold]Examples[/bold]

    unmask explain 0b7e0c1d5f3a --stream payments

    unmask explain 2:1041 --stream payments --json
    """
    import msgspec

    from flows import progress
    from flows.serve.model import model_of
    from pipelines.live.wanted import OrderedThreshold
    from pipelines.operate.explain import reproduce
    from pipelines.operate.published import published

    spec, here = stream_of(stream), settings()
    connection, lake = here.connection(), here.lake(spec)

    def model(digest: str, threshold: float | None) -> "Model":
        found = model_of(here, spec, digest)
        return found if threshold in (None, found.threshold) else found.with_threshold(OrderedThreshold(threshold))

    with progress.shown("explain") as report:

        def show(done: int, n: int) -> None:
            report(done / max(n, 1), f"{done:,} of {n:,} records")

        found = published(connection, spec, lake, alert_id, progress=show)
        again = reproduce(
            connection,
            spec,
            lake,
            here.snapshots(spec),
            found,
            models=model,
            progress=show,
        )
    if as_json:
        said = {"verdict": again.verdict} | msgspec.structs.asdict(again)
        sys.stdout.write(json_line(msgspec.json.encode(said).decode()) + "\n")
    else:
        _show(again)
    raise typer.Exit(0 if again.verdict == "equal" else 1)


def _show(again: "Reproduction") -> None:
    def line(words: str) -> None:
        out.print(words, markup=False, highlight=False, soft_wrap=True)

    line(f"event {clean(again.event_id)} at {again.partition}:{again.offset}, model {clean(again.model[:12])}")
    if again.state_from:
        line(f"{again.n_folded:,} records folded from {again.state_from}")
    if again.features:
        out.print(_features(again))
    if again.reasons or again.published_reasons:
        out.print(_reasons(again))
    score = "not recomputed" if again.score is None else f"{again.score:.6f}"
    threshold = "" if again.threshold is None else f" (threshold {again.threshold:.6f})"
    line(f"score: {score} recomputed, {again.published_score:.6f} published{threshold}")
    line(f"features hash: {again.features_hash or 'not recomputed'}, {clean(again.published_features_hash)} published")
    if (told := again.suppressed) is not None:
        what = f"the alert was suppressed: {told.entity} {told.id} until {told.until}, by {told.by} at {told.at}"
        line(clean(f"{what}: {told.why}"))
    for words in (*again.differs, *again.why_not):
        line(clean(words))
    line(f"verdict: {again.verdict}")


def _features(again: "Reproduction") -> "Table":
    """Every feature with its recomputed and published value; a star marks those that differ."""
    from rich.text import Text

    has_published = again.published_reasons is not None
    table = _table("feature", "recomputed", *(["published", ""] if has_published else []))
    for one in again.features:
        cells = [_exact(one.recomputed)]
        if has_published:
            cells += [_exact(one.published), "" if one.recomputed == one.published else "*"]
        table.add_row(Text(clean(one.name)), *map(Text, cells))
    return table


def _reasons(again: "Reproduction") -> "Table":
    from rich.text import Text

    table = _table("reason", "actual", "expected", "score if expected")
    for title, reasons in (("recomputed", again.reasons), ("published", again.published_reasons)):
        for one in reasons or ():
            cells = (_exact(one.actual), _exact(one.expected), f"{one.score_if_expected:.6f}")
            table.add_row(Text(clean(f"{title}: {one.field}")), *map(Text, cells))
    return table


def _table(*names: str) -> "Table":
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for at, name in enumerate(names):
        table.add_column(name, justify="right" if at else "left", overflow="fold")
    return table


def _exact(value: float | str | None) -> str:
    return "–" if value is None else clean(value) if isinstance(value, str) else f"{value:.10g}"
