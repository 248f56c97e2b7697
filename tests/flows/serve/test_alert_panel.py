"""What an event brings reaches a terminal as text only."""

import io
import json
from collections.abc import Callable

import msgspec
from rich.console import Console

from flows.screen import clean, json_line, plain
from flows.serve.alert_panel import panel, shown_record
from pipelines.contracts.alert_memory import Overflowed
from pipelines.contracts.delays import ScoringDelayed
from pipelines.contracts.messages import (
    Alert,
    AlertOverflow,
    AlertUpdate,
    Reason,
    RecordSource,
    Review,
    Score,
    SuppressedAlert,
    decode,
    encode,
)
from pipelines.contracts.suppression import Suppression

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
    seen = printed(lambda console: console.print(panel(hostile_alert())))
    quiet = msgspec.structs.replace(hostile_alert(), event_id="quiet")
    ours = printed(lambda console: console.print(panel(quiet)))
    assert seen.count("\x1b") == ours.count("\x1b")  # only the styles of the panel itself
    assert "]0;owned" in seen
    assert "[red]x[/red]" in seen
    assert "[link=http://x]y" in seen
    for character in "\x07\x9b\u202e\u2066\x7f\r":
        assert character not in seen
    assert seen.count("\x1b]") == seen.count("\x1b[2J") == 0
    assert len(seen.splitlines()) == len(ours.splitlines())


def test_updates_and_overflow_are_one_line_each_whatever_they_contain() -> None:
    update = AlertUpdate(
        group_id="0b7e0c1d5f3a4e5d8c8f6a1b2c3d4e5f", count=1_024, highest_score=0.9876, closed=True, since="",
        entities={"customer_id": "42"}, event_id=HOSTILE, score=0.9, source=RecordSource("t", 0, 0), arrival="",
        event_time="2026-12-01T10:02:03.000Z",
    )  # fmt: skip
    overflow = AlertOverflow(
        day="2026-12-01", topic="t", partition=2, n_alerts=50, n_overflow=62, highest_score=0.9876, arrival="",
        events=(Overflowed(7, 0.9876), Overflowed(9, 0.5)),
    )  # fmt: skip
    line = printed(lambda console: console.print(shown_record(msgspec.structs.replace(update, event_id="e1"))))
    for words in ("alert 0b7e0c1d5f3a: customer_id 42", "1,024 alerts, highest score 0.988", "event e1", "closed"):
        assert words in line
    hostile = printed(lambda console: console.print(shown_record(update)))
    assert (len(hostile.splitlines()), hostile.count("\x1b")) == (1, line.count("\x1b"))
    line = printed(lambda console: console.print(shown_record(overflow)))
    for words in ("beyond the cap of 2026-12-01", "2 alerts, highest score 0.988", "partition 2", "62 that day"):
        assert words in line
    late = ScoringDelayed(
        topic="t", partition=2, since=HOSTILE, at="2026-12-01T10:02:03.000Z", lag_ms=75_400, highest_lag_ms=90_000,
        bound_ms=60_000, recovered=False, next_offset=7,
    )  # fmt: skip
    line = printed(lambda console: console.print(shown_record(late)))
    assert "scores come 75 s late" in line
    assert (len(line.splitlines()), line.count("\x1b")) == (1, hostile.count("\x1b"))
    line = printed(lambda console: console.print(shown_record(msgspec.structs.replace(late, recovered=True))))
    assert "scores come in time again" in line
    assert "at most 90 s late" in line
    assert "score if expected" in printed(lambda console: console.print(shown_record(hostile_alert())))
    told = Suppression(entity="card", id=HOSTILE, until=HOSTILE, by=HOSTILE, at="", why=HOSTILE)
    fields = {name: getattr(hostile_alert(), name) for name in Score.__struct_fields__} | {"threshold": 0.5}
    quiet = SuppressedAlert(kind="suppressed", **fields, alert_id=HOSTILE, entities={}, suppression=told)
    line = printed(lambda console: console.print(shown_record(quiet), soft_wrap=True))
    assert "suppressed alert" in line
    assert (len(line.splitlines()), line.count("\x1b]")) == (1, 0)
    review = Review(
        kind="review", **fields, review_id="7b", entities={}, reasons=[], score_if_all_expected=0.1, features={}
    )  # fmt: skip
    assert "random review 7b" in printed(lambda console: console.print(shown_record(review)))


def test_hostile_text_among_markup_and_in_json() -> None:
    seen = printed(lambda console: console.print(f"[bold]event[/bold] {plain(HOSTILE)}", highlight=False))
    assert "[red]x[/red]" in seen
    assert seen.count("\x1b") == 2  # bold and its end
    assert clean("a\nb\x1b", keep="\n") == "a\nb�"
    line = json_line(encode(hostile_alert()).decode())
    assert line.isprintable()
    assert decode(line.encode(), Alert) == hostile_alert()
    assert json.loads(json_line('"\U000e0001"')) == "\U000e0001"
