"""`unmask demo` and `unmask simulate`: past or simulated events played into Kafka."""

from pathlib import Path
from typing import Annotated

import typer

from flows.cli.options import StreamOption, settings, stream_of, stream_path
from flows.cli.terminal import out
from flows.extras import require

app = typer.Typer()


@app.command(rich_help_panel="First steps")
def demo(
    data: Annotated[
        Path | None, typer.Option(help="Replay the Parquet or CSV files of this folder instead of a simulated stream.")
    ] = None,
    stream: StreamOption = None,
    out_folder: Annotated[Path, typer.Option("--out", help="Folder for summary.json and logs.")] = Path("demo"),
    keep: Annotated[
        bool, typer.Option("--keep", help="Leave the servers and the topics up at the end, also after a failure.")
    ] = False,
    rate: Annotated[float, typer.Option(min=1, help="Events per second in the live part.")] = 2_000.0,
    seed: Annotated[int, typer.Option(help="Seed of the simulation and of training.")] = 0,
) -> None:
    """Run everything on this machine: Kafka, MLflow, Prefect, training, live scoring and the audit. 2 to 5 minutes.

    [bold]Examples[/bold]

    unmask demo

    unmask demo --data path/to/handbook --keep
    """
    for extra in ("train", "flows"):
        require(extra)
    from flows.demo.run import Demo

    stream_file = stream_path(stream) if stream and data else None
    holds = Demo(data=data, stream_file=stream_file, out=out_folder, keep=keep, rate=rate, seed=seed, console=out).run()
    raise typer.Exit(0 if holds else 1)


@app.command(rich_help_panel="Data")
def simulate(
    stream: StreamOption = None,
    data: Annotated[
        Path | None, typer.Option(help="Replay the Parquet or CSV files of this folder instead of simulating.")
    ] = None,
    to: Annotated[
        Path | None, typer.Option(help="Write the simulated events to this folder as Parquet instead of to Kafka.")
    ] = None,
    days: Annotated[int, typer.Option(min=1, help="Days of payments to simulate.")] = 30,
    customers: Annotated[int, typer.Option(min=1, help="Number of simulated customers.")] = 1_000,
    terminals: Annotated[int, typer.Option(min=1, help="Number of simulated terminals.")] = 1_500,
    rate: Annotated[float | None, typer.Option(min=1, help="Events per second; default as fast as possible.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the simulation.")] = 0,
) -> None:
    """Send simulated payments, or past events of your own, to Kafka. Labels follow after their maturity.

    Records get the timestamps of the past. Of your own events, only what is due by now is sent: a label whose maturity
    is not over is yours to send later. To continue with live events, run `unmask topics live`.

    [bold]Examples[/bold]

    unmask simulate --to payments-data --days 60

    unmask simulate --stream handbook --data path/to/handbook --rate 500
    """
    import time
    from datetime import UTC, datetime

    from flows import progress
    from pipelines.errors import UnmaskError
    from pipelines.kafka import topics
    from pipelines.play import producer
    from pipelines.play import simulate as simulator

    spec = stream_of(stream if stream and data else Path("payments"))
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
        out.print(f"Wrote {len(frame):,} events to {to / 'events.parquet'}.")
        return
    connection = settings().connection()
    events = spec.topic("events")
    if events in topics.topic_names(connection) and topics.stamps_appends(connection, events):
        raise UnmaskError(
            f"the broker stamps {events} on arrival, so past events would count as new ones; use other topics "
            "(`topics` in the stream file)"
        )
    producer.create_stream_topics(connection, spec, n_partitions=4, append_time=False)
    replayer = producer.Replayer(connection, spec, n_partitions=len(topics.partitions_of(connection, events)))
    with progress.shown("simulate") as report:
        played = replayer.play(
            frame,
            label_delay_ms=spec.labels.maturity_ms if spec.labels else 0,
            until_ms=round(time.time() * 1000) if data else None,
            rate=rate,
            seed=seed,
            progress=lambda done, n: report(done / max(n, 1), f"{done:,} of {n:,} events and labels"),
        )
        replayer.finish()
    labels = f" and {played.n_labels:,} labels to {spec.topic('labels')}" if spec.labels else ""
    out.print(f"Sent {played.n_events:,} events to {events}{labels} in {played.wall_s:.1f} s.", soft_wrap=True)
