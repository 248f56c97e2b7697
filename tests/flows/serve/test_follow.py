"""What an event brings reaches a terminal as text only; a label goes where its event went."""

import io
import json
import uuid
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from rich.console import Console

from flows.screen import clean, json_line, plain
from flows.serve import follow
from pipelines.contracts.messages import Alert, Reason, RecordSource, decode, encode
from pipelines.kafka import topics
from pipelines.kafka.connection import Connection
from pipelines.kafka.port import Message
from pipelines.lake.ingest import ingest
from pipelines.lake.tables import Lake
from pipelines.play.producer import create_stream_topics
from tests.pipelines.live.rig import START_MS, event_message, payments_stream

HOSTILE = "\x1b]0;owned\x07\x1b[2J[red]x[/red]\x9b31m\u202egnp\u2066\x7f\r\n[link=http://x]y"


def hostile_alert() -> Alert:
    return Alert(
        event_id=HOSTILE, score=0.9, alert=True, model=HOSTILE, source=RecordSource("t", 0, 0), event_time=HOSTILE,
        arrival="", late_ms=0, out_of_order=False, features_hash="", alert_id=HOSTILE, threshold=0.5,
        entities={HOSTILE: HOSTILE}, score_if_all_expected=0.1, features={HOSTILE: HOSTILE},
        reasons=[Reason(field=HOSTILE, actual=HOSTILE, expected=HOSTILE, surprise=3.0, score_if_expected=0.2)],
    )  # fmt: skip


def printed(show: Callable[[Console], None]) -> str:
    """What a colour terminal would get."""
    console = Console(file=io.StringIO(), force_terminal=True, color_system="truecolor", width=400)
    show(console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_a_hostile_alert_shows_its_text_and_steers_nothing() -> None:
    seen = printed(lambda console: console.print(follow.panel(hostile_alert())))
    quiet = msgspec.structs.replace(hostile_alert(), event_id="quiet")
    ours = printed(lambda console: console.print(follow.panel(quiet)))
    assert seen.count("\x1b") == ours.count("\x1b")  # only the styles of the panel itself
    assert "]0;owned" in seen
    assert "[red]x[/red]" in seen
    assert "[link=http://x]y" in seen
    for character in "\x07\x9b\u202e\u2066\x7f\r":
        assert character not in seen
    assert seen.count("\x1b]") == seen.count("\x1b[2J") == 0
    assert len(seen.splitlines()) == len(ours.splitlines())


def test_hostile_text_among_markup_and_in_json() -> None:
    seen = printed(lambda console: console.print(f"[bold]event[/bold] {plain(HOSTILE)}", highlight=False))
    assert "[red]x[/red]" in seen
    assert seen.count("\x1b") == 2  # bold and its end
    assert clean("a\nb\x1b", keep="\n") == "a\nb�"
    line = json_line(encode(hostile_alert()).decode())
    assert line.isprintable()
    assert decode(line.encode(), Alert) == hostile_alert()
    assert json.loads(json_line('"\U000e0001"')) == "\U000e0001"


@pytest.mark.parametrize("key", ["c1", "c2", "customer-3"])
def test_a_label_goes_to_the_partition_of_its_event(key: str, kafka: str, tmp_path: Path) -> None:
    connection, stream = Connection(kafka), payments_stream(f"label-{uuid.uuid4().hex[:8]}")
    create_stream_topics(connection, stream, n_partitions=4, append_time=False)
    with connection.writer() as writer:
        event = event_message("e1", key, START_MS)
        writer.send(Message(stream.topic("events"), event, key.encode(), timestamp_ms=START_MS))
        writer.flush()
    lake = Lake(tmp_path, stream)
    ingest(connection, stream, lake)
    follow.send_label(connection, stream, lake, event_id="e1", label=1, source="test")
    spans = topics.bounds(connection, [stream.topic("labels")])
    (label,) = [r for batch in topics.read_between(connection, spans) for r in batch]
    assert label.key == key.encode()
    assert label.partition == topics.partition_of(key.encode(), 4)
    assert lake.read("events")["partition"].to_list() == [label.partition]
