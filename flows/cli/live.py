"""`unmask score`, `alerts`: live scoring and what a fraud team sees of it."""

import sys
from typing import Annotated

import typer

from flows.cli.options import StreamOption, settings, stream_of, stream_words
from flows.cli.terminal import err, out, show_service_log
from flows.screen import json_line
from pipelines.errors import UnmaskError

app = typer.Typer()


@app.command(rich_help_panel="Live scoring")
def score(
    stream: StreamOption = None,
    start: Annotated[
        str | None,
        typer.Option(
            "--from",
            help="Where to begin on the first start: earliest or latest. Later starts continue where scoring stopped.",
        ),
    ] = None,
    replica: Annotated[
        str | None,
        typer.Option(help="Name of this scorer, if several share the stream on this machine. Default: the host name."),
    ] = None,
    metrics_port: Annotated[
        int | None,
        typer.Option(
            envvar="UNMASK_METRICS_PORT",
            min=0,
            max=65_535,
            help="Serve /metrics (Prometheus), /livez and /readyz on this port; 0: any free one. Default: off.",
        ),
    ] = None,
    fault_at: Annotated[str | None, typer.Option(envvar="UNMASK_FAULT_AT", hidden=True)] = None,
) -> None:
    """Score events as they arrive, each exactly once, and publish scores and alerts. Runs until SIGTERM or Ctrl-C.

    Several scorers share the partitions of a stream. If one ends, the others continue with its partitions.
    UNMASK_LOG=json writes the log as JSON lines.

    [bold]Examples[/bold]

    unmask score --stream payments --from latest

    unmask score --stream payments --from latest --replica b     # a second one on the same machine
    """
    if start not in (None, "earliest", "latest"):
        raise UnmaskError(f"--from is {start!r}; it must be earliest or latest")
    spec = stream_of(stream)
    here = settings()
    show_service_log(as_json=here.log == "json")
    from flows.serve.service import serve
    from pipelines import faults

    fault = faults.kill_at(fault_at) if fault_at else faults.no_fault
    serve(here, spec, start=start, replica=replica, metrics_port=metrics_port, fault=fault)  # type: ignore[arg-type]


@app.command(rich_help_panel="Live scoring")
def alerts(
    stream: StreamOption = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Keep running and show new alerts.")] = False,
    last: Annotated[int, typer.Option("--last", "-n", min=0, help="How many past alerts to show first.")] = 5,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object per line.")] = False,
) -> None:
    """Show the newest alerts with their reasons. Without alerts, say whether anything was scored.

    Updates, overflow and suppressed alerts are one line each; events drawn for review (`review` in the stream file)
    are marked. In JSON all of these have a `kind`.

    [bold]Examples[/bold]

    unmask alerts --stream payments --follow

    unmask alerts --stream payments --last 100 --json > alerts.jsonl
    """
    spec = stream_of(stream)
    connection = settings().connection()
    from flows.serve import alert_panel
    from flows.serve import follow as following
    from pipelines.contracts.messages import AlertRecord, encode

    def show(record: AlertRecord) -> None:
        if as_json:
            sys.stdout.write(json_line(encode(record).decode()) + "\n")
            sys.stdout.flush()
        else:
            out.print(alert_panel.shown_record(record))

    past, ends = following.past_alerts(connection, spec, last=last)
    for record in past:
        show(record)
    if last and not past:
        n_scored = following.count_scored(connection, spec)
        err.print(
            f"No alerts yet: {n_scored:,} events of stream {spec.name} were scored, and none was above the threshold."
            if n_scored
            else f"No alerts yet: no event of stream {spec.name} has been scored. Start the scorer with "
            f"`unmask score {stream_words(stream)}`.",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
    if follow:
        for record in following.new_alerts(connection, ends):
            show(record)
