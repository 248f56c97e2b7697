"""`unmask topics`: the topics of a stream."""

from typing import Annotated

import typer

from flows.cli.options import StreamOption, settings, stream_of
from flows.cli.terminal import out
from pipelines.errors import UnmaskError

app = typer.Typer(help="Create the topics of a stream, and change from a replay to live.", no_args_is_help=True)


@app.command()
def create(
    stream: StreamOption = None,
    partitions: Annotated[int, typer.Option(min=1, help="Partitions of each topic.")] = 4,
    replication: Annotated[int, typer.Option(min=1, help="Copies of each topic; not more than brokers.")] = 1,
    replay: Annotated[
        bool, typer.Option("--replay", help="For a replay of past events, which brings its own clock.")
    ] = False,
) -> None:
    """Create the topics of a stream that do not exist yet, and check those that do.

    [bold]Examples[/bold]

    unmask topics create --stream logins.toml --partitions 8

    unmask topics create --stream payments --replay
    """
    from pipelines.kafka import topics
    from pipelines.live.topic_checks import checked_partitions
    from pipelines.play import producer

    spec = stream_of(stream)
    connection = settings().connection()
    names = topics.topic_names(connection)
    inputs = [topic for kind in spec.inputs if (topic := spec.topic(kind)) in names]
    if inputs and topics.stamps_appends(connection, *inputs) == replay:
        now, wanted = ("LogAppendTime", "CreateTime") if replay else ("CreateTime", "LogAppendTime")
        raise UnmaskError(
            f"{' and '.join(inputs)} {'exist' if len(inputs) > 1 else 'exists'} with message.timestamp.type={now}; "
            f"{'a replay' if replay else 'live scoring'} needs {wanted}. Use other topics (`topics` in the stream "
            f"file), or {'omit' if replay else 'add'} --replay if these are the right ones"
        )
    made = producer.create_stream_topics(
        connection, spec, n_partitions=partitions, append_time=not replay, replication=replication
    )
    n_partitions = checked_partitions(connection, spec)
    out.print(f"Created {', '.join(made)}." if made else f"All topics of {spec.topics} exist.", soft_wrap=True)
    out.print(
        f"{n_partitions} partitions each; the time of an event is "
        f"{'the one its producer gives (a replay)' if replay else 'when it arrived at the broker'}.",
        soft_wrap=True,
    )


@app.command()
def live(stream: StreamOption = None) -> None:
    """Change the topics of a replay to live: from now on the broker stamps events and labels on arrival.

    Run it after the replay of the past and before live events are sent. Past records keep their timestamps, so the
    histories of entities continue without a gap.

    [bold]Example[/bold]  unmask topics live --stream logins.toml
    """
    from pipelines.kafka import topics
    from pipelines.live.topic_checks import checked_partitions

    spec = stream_of(stream)
    connection = settings().connection()
    checked_partitions(connection, spec)
    inputs = [spec.topic(kind) for kind in spec.inputs]
    topics.stamp_appends(connection, *inputs)
    out.print(f"The broker now stamps {' and '.join(inputs)} on arrival. Start your producers.", soft_wrap=True)
