"""`unmask check`: every problem between a stream file and a file of past events, at once."""

import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from flows.offline.events import FileEvents, events_of
from pipelines.contracts.contract import RULES, Event, EventContract, Refusal
from pipelines.contracts.messages import cut
from pipelines.contracts.stream import DAY_MS, Stream
from pipelines.contracts.stream_file import load
from pipelines.errors import StreamFileError
from pipelines.play import cells
from pipelines.play.table_file import TableFile, read_table

MAX_CATEGORY_VALUES = 256  # the model distinguishes the most frequent ones and treats all others as one
SHOWN = 120


@dataclass(frozen=True)
class RuleBroken:
    """Rows refused by one rule of the contract, with the first one as an example."""

    rule: str
    field: str
    n_rows: int
    row: int
    detail: str
    fix: str


@dataclass(frozen=True)
class Checked:
    """The result: problems to fix (exit code 1), and notes."""

    n_rows: int
    n_accepted: int
    refused: tuple[RuleBroken, ...]
    problems: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def holds(self) -> bool:
        """Whether there is nothing to fix."""
        return not self.problems and not self.refused


def check(stream_file: Path, file: Path) -> Checked:
    """Check a file of past events against a stream file, with the contract of the live scorer.

    Raises:
        TableFileError: the file is not a table.
    """
    table = read_table(file)
    try:
        stream = load(stream_file)
        events = events_of(stream, table)
    except StreamFileError as error:
        return Checked(table.frame.height, 0, (), (str(error),), table.notes)
    refused, accepted = refusals(events)
    problems, notes = findings(table, events, accepted)
    return Checked(len(events), int(accepted.sum()), tuple(refused), tuple(problems), tuple(notes))


def findings(table: TableFile, events: FileEvents, accepted: NDArray[np.bool_]) -> tuple[list[str], list[str]]:
    """Problems and notes other than refused rows.

    Args:
        accepted: which events satisfy the contract, **shape (n,)**.
    """
    stream = events.stream
    problems = [*_label_problems(stream, table), *_key_problems(events, accepted)]
    notes = [*table.notes, *_column_notes(stream, table, events), *_time_notes(stream, table, events)]
    return problems, [*notes, *_window_notes(stream, events, accepted)]


def refusals(events: FileEvents) -> tuple[list[RuleBroken], NDArray[np.bool_]]:
    """The rules that rows would break if they arrived now, and which rows are accepted, **shape (n,)**."""
    contract, now_ms = EventContract(events.stream), int(time.time() * 1000)
    accepted = np.zeros(len(events), bool)
    found: list[tuple[int, str, str]] = []
    for i, (key, value) in enumerate(events.messages()):
        event = contract.decode(value, key, now_ms)
        accepted[i] = isinstance(event, Event)
        if isinstance(event, Refusal):
            found.append((int(events.row[i]), event.rule, event.detail))
    return by_rule(events.stream, found), accepted


def by_rule(stream: Stream, found: Iterable[tuple[int, str, str]]) -> list[RuleBroken]:
    """Refused rows (row, rule, detail) by rule and field, the most frequent first."""
    counts: Counter[tuple[str, str]] = Counter()
    first: dict[tuple[str, str], tuple[int, str]] = {}
    for row, rule, detail in found:
        named = (rule, _field_of(detail, stream))
        counts[named] += 1
        first.setdefault(named, (row, cut(detail, SHOWN)))
    return [RuleBroken(rule, field, n, *first[rule, field], RULES[rule]) for (rule, field), n in counts.most_common()]


def _field_of(detail: str, stream: Stream) -> str:
    """The field of a refusal: the first word of its detail."""
    name = detail.split(" ", 1)[0].rstrip(":")
    return name if name in {field.name for field in stream.fields} else ""


def _label_problems(stream: Stream, table: TableFile) -> Iterator[str]:
    if stream.labels is None:
        return
    column = table.frame[stream.labels.column]
    found, missing = cells.labels(column), cells.is_missing(column, of_values=False)
    neither = cells.texts(column).filter(found.is_null() & ~missing)
    if len(neither):
        values = ", ".join(f"{value!r}" for value in neither.unique(maintain_order=True)[:3])
        yield (
            f"label column {stream.labels.column}: neither 0 nor 1 in {len(neither):,} of {len(column):,} rows "
            f"(such as {values}); write 1 for fraud and 0 for not"
        )
    if not (found == 1).any():
        yield f"label column {stream.labels.column}: no row is labelled fraud; remove [labels] or name another column"


def _key_problems(events: FileEvents, accepted: NDArray[np.bool_]) -> Iterator[str]:
    stream = events.stream
    ids = pl.Series(events.cells[stream.event_id]).filter(pl.Series(accepted))
    if (n_again := len(ids) - ids.n_unique()) > 0:
        again = ids.filter(ids.is_duplicated())[0]
        yield (
            f"event id {stream.event_id}: repeated in {n_again:,} of {len(ids):,} rows (such as {again!r}); live, a "
            "repeated id within duplicate_memory counts as the same event and gets no score of its own"
        )
    key = pl.Series(events.cells[stream.key], strict=False).filter(pl.Series(accepted))
    if len(key) >= 100 and key.n_unique() > 0.5 * len(key):
        yield (
            f"key {stream.key}: {key.n_unique():,} different values in {len(key):,} rows, so most events have no "
            "history; use a column whose values repeat as the first entity"
        )
    elif key.n_unique() == 1 and stream.key not in events.made:
        yield f"key {stream.key}: every row has the same value; use a column with more values as the first entity"


def _column_notes(stream: Stream, table: TableFile, events: FileEvents) -> Iterator[str]:
    if events.unused:
        named = ", ".join(table.columns[name] for name in events.unused[:20])
        yield f"columns that are not in the stream file and are ignored: {named}"
    if events.lacking:
        yield f"fields that the file does not have (treated as missing): {', '.join(events.lacking)}"
    if events.made:
        yield f"fields generated from the rows, because the file does not have them: {', '.join(events.made)}"
    for name in (*stream.numbers, *stream.categories):
        values = pl.Series(events.cells.get(name, []), strict=False).drop_nulls()
        if name in events.cells and len(values) == 0:
            yield f"field {name}: has no value in any row"
        elif len(values) > 1 and values.n_unique() == 1:
            yield f"field {name}: every row has the same value ({cut(str(values[0]), 40)}); it cannot help the model"
    for name in stream.categories:
        values = pl.Series(events.cells.get(name, []), strict=False).drop_nulls()
        if (n := values.n_unique()) > MAX_CATEGORY_VALUES:
            yield (
                f"category {name}: {n:,} different values; the model distinguishes the "
                f"{MAX_CATEGORY_VALUES} most frequent ones and treats all others as one"
            )


def _time_notes(stream: Stream, table: TableFile, events: FileEvents) -> Iterator[str]:
    if stream.event_time not in events.made:
        times = cells.times(table.frame[stream.event_time])
        if not times.has_zone:
            yield f"event time {stream.event_time}: has no time zone, so UTC is assumed; live events need one"
        if not times.has_clock:
            yield f"event time {stream.event_time}: has no time of day; windows shorter than a day are useless"
    if events.n_time_falls:
        yield (
            f"event time {stream.event_time}: earlier than the row above in {events.n_time_falls:,} of {len(events):,} "
            "rows; here the rows are sorted by time, but in live scoring such an event is late"
        )


def _window_notes(stream: Stream, events: FileEvents, accepted: NDArray[np.bool_]) -> Iterator[str]:
    """Windows that are longer than the file, or in which an entity rarely occurs twice."""
    times = events.time_ms[accepted]
    if len(times) < 2:
        return
    span_ms = int(times[-1] - times[0])
    for entity in stream.entities:
        of_entity = [f for f in stream.features if f.entity == entity and f.window_ms is not None]
        if not of_entity or entity not in events.cells:
            continue
        ids = pl.Series(events.cells[entity], strict=False).filter(pl.Series(accepted))
        since = pl.DataFrame({"id": ids, "ms": times}).with_columns(pl.col("ms").diff().over("id").alias("since"))[
            "since"
        ]
        for window_ms in sorted({f.window_ms for f in of_entity if f.window_ms is not None}):
            names = [f.name for f in of_entity if f.window_ms == window_ms]
            window = f"window {span_words(window_ms)} of {entity}"
            within = float((since <= window_ms).sum()) / len(times)
            if window_ms > span_ms:
                yield f"{window}: is longer than the file ({span_words(span_ms)}): {names[0]}, ..."
            elif within < 0.001:
                yield (
                    f"{window}: only {within:.2%} of the events have an earlier one within it; it is "
                    "useful only if frauds occur in bursts"
                )


def span_words(ms: int) -> str:
    """Format a duration.

    >>> span_words(3_600_000), span_words(63 * DAY_MS), span_words(5_400_000)
    ('1 hour', '63 days', '1.5 hours')
    """
    units = ((DAY_MS, "day"), (3_600_000, "hour"), (60_000, "minute"))
    unit_ms, name = next((unit for unit in units if ms >= unit[0]), (1_000, "second"))
    number = ms / unit_ms
    shown = f"{number:,.0f}" if number >= 10 else f"{number:.2g}"
    return f"{shown} {name}" + ("" if shown == "1" else "s")
