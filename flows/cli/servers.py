"""`unmask kafka` and `unmask ui`: servers on this machine."""

import typer

from flows.cli.options import settings
from flows.cli.terminal import err, out

kafka_app = typer.Typer(help="Start, stop or find a Kafka broker on this machine.", no_args_is_help=True)
ui_app = typer.Typer(help="Start, stop or find MLflow and Prefect on this machine.", no_args_is_help=True)


@kafka_app.command("start")
def kafka_start() -> None:
    """Start a broker, or find the one that runs, and print its address. Exit code 2 if none can be started.

    [bold]Example[/bold]  export KAFKA_BOOTSTRAP_SERVERS=$(unmask kafka start)
    """
    from flows.local import kafka_server

    broker = kafka_server.start_broker(settings().kafka_folder, log=err.print)
    out.print(broker.bootstrap)


@kafka_app.command("stop")
def kafka_stop() -> None:
    """Stop the broker, also that of `unmask demo --keep`. Its data stays.

    [bold]Example[/bold]  unmask kafka stop
    """
    from flows.local import kafka_server

    stopped = [broker for folder in settings().kafka_folders if (broker := kafka_server.stop_broker(folder))]
    out.print("\n".join(f"Stopped {broker.version}." for broker in stopped) or "No broker was running.")


@kafka_app.command("status")
def kafka_status() -> None:
    """Show which broker runs and where. Exit code 1 if none runs.

    [bold]Example[/bold]  unmask kafka status
    """
    from flows.local import kafka_server

    running = [broker for folder in settings().kafka_folders if (broker := kafka_server.find_broker(folder))]
    for broker in running:
        out.print(f"{broker.version} listens on {broker.bootstrap}; its log is {broker.log}.", soft_wrap=True)
    if not running:
        out.print("No broker is running; start one with `unmask kafka start`.")
    raise typer.Exit(0 if running else 1)


@ui_app.command("start")
def ui_start() -> None:
    """Start MLflow and Prefect, or find those that run, and print their addresses.

    [bold]Example[/bold]  unmask ui start
    """
    from flows.local import servers

    servers.start_servers(settings().ui_folder, log=out.print)


@ui_app.command("stop")
def ui_stop() -> None:
    """Stop MLflow and Prefect. Their data stays.

    [bold]Example[/bold]  unmask ui stop
    """
    from flows.local import servers

    stopped = servers.stop_servers(settings().ui_folder)
    out.print(f"Stopped {' and '.join(stopped)}." if stopped else "Neither MLflow nor Prefect was running.")


@ui_app.command("status")
def ui_status() -> None:
    """Show where MLflow and Prefect run. Exit code 1 unless both run.

    [bold]Example[/bold]  unmask ui status
    """
    from flows.local import servers

    found = servers.find_servers(settings().ui_folder)
    if found:
        out.print(f"MLflow: {found.mlflow.url}{servers.MLFLOW_PAGE}\nPrefect: {found.prefect.url}")
    else:
        out.print("MLflow and Prefect are not running; start them with `unmask ui start`.")
    raise typer.Exit(0 if found else 1)
