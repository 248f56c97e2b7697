"""The `unmask` command put together from its groups."""

from typing import Annotated

import typer

from flows.cli import (
    checks,
    doctor,
    explain,
    feedback,
    history,
    live,
    orders,
    play,
    refused,
    schemas,
    servers,
    topics,
    training,
)
from flows.cli.terminal import out
from flows.offline import commands as offline

EXIT_CODES = """
[bold]Exit codes[/bold]: 0 done · 1 a check does not hold · 2 you or a server must fix something (the message says what)
· 3 another scorer has taken over · 4 a defect of Unmask (the traceback is in UNMASK_HOME/defects.log) · 130 Ctrl-C

[bold]Settings[/bold] come from environment variables: UNMASK_HOME (default .unmask), UNMASK_STREAM,
UNMASK_SNAPSHOTS, UNMASK_BACKFILL, UNMASK_METRICS_PORT, UNMASK_LOG, KAFKA_CLIENT, KAFKA_BOOTSTRAP_SERVERS,
KAFKA_SECURITY_PROTOCOL, KAFKA_SASL_MECHANISM, KAFKA_SASL_USERNAME, KAFKA_SASL_PASSWORD[_FILE], KAFKA_SSL_CAFILE,
MLFLOW_TRACKING_URI, PREFECT_API_URL.
"""

app = typer.Typer(
    help="Find fraud and anomalies in streams of tabular events.\n" + EXIT_CODES,
    rich_markup_mode="rich",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

# In the order in which a new user needs them.
offline.add_to(app)
app.add_typer(play.app)
app.add_typer(topics.app, name="topics", rich_help_panel="Data")
app.add_typer(schemas.app)
app.add_typer(training.app)
app.add_typer(live.app)
app.add_typer(feedback.app)
app.add_typer(orders.app)
app.add_typer(history.app)
app.add_typer(checks.app)
app.add_typer(doctor.app)
app.add_typer(explain.app)
app.add_typer(refused.app, name="refused", rich_help_panel="Checks and recovery")
app.add_typer(servers.kafka_app, name="kafka", rich_help_panel="Servers on this machine")
app.add_typer(servers.ui_app, name="ui", rich_help_panel="Servers on this machine")


def _show_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        out.print(f"unmask {version('unmask')}", highlight=False)
        raise typer.Exit


@app.callback()
def _options(
    _version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    pass
