"""`unmask init`: a stream file guessed from a file of past events, every guess explained."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from flows.offline import made
from flows.offline.columns import Column, columns_of
from flows.offline.roles import Roles, roles_of
from pipelines.contracts.stream import DAY_MS, HOUR_MS
from pipelines.contracts.stream_file import parse
from pipelines.errors import StreamFileError
from pipelines.play import cells
from pipelines.play.table_file import TableFile, field_name, read_table

WINDOWS = {"10m": 600_000, "1h": HOUR_MS, "1d": DAY_MS, "7d": 7 * DAY_MS, "30d": 30 * DAY_MS}
MIN_ROWS = 20
MAX_NUMBERS_WITH_HISTORY = 5
ENOUGH_FOR_A_MEAN = 10  # events
MAX_DISTINCT_COUNTS = 4
_AMOUNTS = {"amount", "amt", "value", "price", "total", "sum", "cost", "betrag", "bytes", "kilobytes", "kb", "mb",
            "volume", "size", "quantity", "qty", "duration"}  # fmt: skip
_NEVER_NEGATIVE = _AMOUNTS - {"value", "total", "sum", "betrag", "amount", "amt"}
_PLACES = {"lat", "latitude", "lon", "long", "lng", "longitude", "year", "x", "y"}


@dataclass(frozen=True)
class Guess:
    """The text of a stream file, an explanation of each column, and general explanations."""

    text: str
    columns: tuple[str, ...]
    notes: tuple[str, ...]


def guess(path: Path, *, name: str | None = None, time_from_rows: bool = False) -> Guess:
    """Guess a stream file from a CSV or Parquet file.

    Args:
        path: a sample of events, or all past events.
        name: name of the stream; None uses the file name.
        time_from_rows: generate times from the order of the rows if no column has one.

    Raises:
        StreamFileError: the file cannot be read, has too few rows, or has no time column.
    """
    table = read_table(path)
    if table.frame.height < MIN_ROWS:
        raise StreamFileError(
            f"{path}: has {table.frame.height} rows; at least {MIN_ROWS} are needed to guess types, and about 1,000 "
            "for training"
        )
    columns = columns_of(table)
    roles = roles_of(columns)
    if roles.time is None and not time_from_rows:
        named = ", ".join(f"`{column.title}`" for column in columns[:12])
        raise StreamFileError(
            f"{path}: no column holds the time of the event (columns: {named}{', ...' if len(columns) > 12 else ''}); "
            "add one, or use --time-from-rows to take the order of the rows as time"
        )
    draft = _Draft(name or _stream_name(path), table, roles)
    text = draft.text()
    parse(text, where="the guessed stream file")
    return Guess(text, tuple(_explained(columns, roles)), (*table.notes, *draft.notes()))


def _explained(columns: Sequence[Column], roles: Roles) -> Iterator[str]:
    for column in columns:
        arrow = f"`{column.title}`" if column.title == column.name else f"`{column.title}` → {column.name}"
        yield f"{arrow}: {roles.words[column.name]}"


def _stream_name(path: Path) -> str:
    stem = Path(path).name.split(".")[0]
    return field_name(stem).strip("_")[:100] or "events"


class _Draft:
    """Writes the stream file of a table with the roles of its columns."""

    def __init__(self, name: str, table: TableFile, roles: Roles) -> None:
        self.name, self.table, self.roles = name, table, roles
        self.n_rows = table.frame.height
        self.event_id = roles.event_id.name if roles.event_id else made.ROW_NUMBER
        self.event_time = roles.time.name if roles.time else made.ROW_TIME
        self.entities = [column.name for column in roles.entities] or [made.ALL_ROWS]
        self.made = [field for field in (self.event_id, self.event_time, *self.entities) if field in made.MADE]
        times = roles.time.times if roles.time else None
        self.has_clock = times is None or times.has_clock
        ms = (times.ms if times else made.MADE[made.ROW_TIME](self.n_rows)).drop_nulls().to_numpy()
        # Ignore a few wrong times, such as 1970-01-01 for "unknown".
        low, high = np.quantile(ms, [0.005, 0.995])
        self.span_ms = max(int(high - low), 1)

    def notes(self) -> list[str]:
        found = [f"{field}: {made.WORDS[field]}" for field in self.made]
        a_day = 0.005 * self.n_rows / max(self.span_ms / DAY_MS, 1e-9)
        found.append(
            f"alert budget: 0.5 % of the events, which is about {a_day:,.1f} alerts a day; change it under [alerts]"
        )
        if self.roles.label is None:
            found.append("no column was recognised as a label (fraud or not); the model is trained without labels")
        return found

    def text(self) -> str:
        """The stream file."""
        return "\n".join([*self._head(), *self._fields(), *self._labels(), *self._features(), *self._alerts(), ""])

    def _head(self) -> Iterator[str]:
        yield f"# Guessed by `unmask init` from {self.table.path.name} ({self.n_rows:,} rows). Check it and"
        yield "# change what is wrong, then run `unmask check` and `unmask try` with this file and your data."
        yield "[stream]"
        yield f'name = "{self.name}"  # letters, digits, _ and -; it names the Kafka topics'
        yield f'event_id = "{self.event_id}"  # different for every event'
        yield f'event_time = "{self.event_time}"  # when it happened; windows are computed from this time'
        named = ", ".join(f'"{name}"' for name in self.entities)
        yield f"entities = [{named}]  # each has a history; the first is the Kafka key"
        yield ""

    def _fields(self) -> Iterator[str]:
        yield "# The fields of an event. Other columns are ignored. Only id, time and key are required."
        yield '# Bounds can be added: { type = "number", min = 0, max = 1e6 }. Events outside them are refused.'
        yield "[fields]"
        for field in self.made:
            kind = "time" if field == made.ROW_TIME else "text"
            yield f'{field} = {{ type = "{kind}" }}  # {made.WORDS[field]}'
        roles = self.roles
        for column in filter(None, (roles.event_id, roles.time, *roles.entities)):
            kind = "time" if column is roles.time else "text"
            yield self._field(column, kind)
        for column in roles.numbers:
            yield self._field(column, "number")
        for column in roles.categories:
            yield self._field(column, "category")
        if roles.omitted:
            yield "# Omitted columns. To use one, add it to the fields above."
            for column in roles.omitted:
                yield f"# {column.name}: {_one_line(roles.words[column.name].removeprefix('omitted: '))}"
        yield ""

    def _field(self, column: Column, kind: str) -> str:
        longest = column.text.str.len_chars().max() if kind in ("text", "category") else 0
        more = f", max_length = {2 * longest}" if isinstance(longest, int) and longest > 200 else ""
        if kind == "number" and _NEVER_NEGATIVE & set(column.words) and _lowest(column) >= 0:
            more = ", min = 0"
        title = "" if column.title == column.name else f'column "{column.title}"; '
        return f'{column.name} = {{ type = "{kind}"{more} }}  # {_one_line(title + self.roles.words[column.name])}'

    def _labels(self) -> Iterator[str]:
        if self.roles.label is None:
            return
        has_gaps = self.roles.label.n_missing > 0
        unlabelled = "without a label is unknown" if has_gaps else "that is not reported within `maturity` is not fraud"
        yield f"# Labels arrive late. An event {unlabelled}."
        yield "[labels]"
        hours = self._maturity_ms() // HOUR_MS
        yield f'maturity = "{f"{hours // 24}d" if hours % 24 == 0 else f"{hours}h"}"'
        if has_gaps:
            yield 'reports = "both"'
        yield f'column = "{self.roles.label.name}"  # in files of past events; live labels have their own topic'
        yield ""

    def _maturity_ms(self) -> int:
        """A week, or about an eighth of a shorter period."""
        eighth = self.span_ms // 8
        unit_ms = DAY_MS if eighth >= DAY_MS else HOUR_MS
        return 7 * DAY_MS if eighth >= 6 * DAY_MS else max(eighth // unit_ms, 1) * unit_ms

    def _windows(self) -> list[str]:
        """Windows that fit at least three times into the file. Without a time of day, at least one day."""
        fit = [w for w in WINDOWS if WINDOWS[w] * 3 <= self.span_ms and (self.has_clock or WINDOWS[w] >= DAY_MS)]
        return fit or (["1h"] if self.has_clock else ["1d"])

    def _usual_window(self, windows: Sequence[str]) -> str:
        """The shortest window with enough events per entity for a mean, or else the longest up to a week."""
        n_entities = self.roles.entities[0].n_distinct if self.roles.entities else 1
        a_ms = self.n_rows / n_entities / self.span_ms
        long = [w for w in windows if HOUR_MS <= WINDOWS[w] <= 7 * DAY_MS] or list(windows[-1:])
        return next((w for w in long if a_ms * WINDOWS[w] >= ENOUGH_FOR_A_MEAN), long[-1])

    def _features(self) -> Iterator[str]:
        yield "# Window features: computed for each event from the earlier events of its entities."
        key, others = self.entities[0], self.entities[1:]
        windows = self._windows()
        # no count over "all": it only grows, so later values are outside the training range
        yield from _group("how often, and how long ago", key, None, windows, ["count"])
        yield from _group(None, key, None, [], ["since_last"])
        if self.has_clock:
            yield from _group("time of day, compared with the usual one", key, None, ["all"], ["hour_share"])
        usual = self._usual_window(windows)
        for column in self._numbers()[:MAX_NUMBERS_WITH_HISTORY]:
            words = f"{column.name}: compared with the usual values " + (
                "" if key == made.ALL_ROWS else f"for this {key}"
            )
            stats = ["mean", "std", "zscore"] if _lowest(column) < 0 else ["mean", "std", "ratio", "zscore"]
            # what is not an amount may follow the seasons: its mean over all time drifts away from the present
            longer = [w for w in windows if WINDOWS[w] > WINDOWS[usual]]
            compared = [usual, "all"] if _is_amount(column) else [usual, *longer[:1]]
            yield from _group(words.strip(), key, column.name, compared, stats)
            if _is_amount(column):
                short = [w for w in windows if w in ("1h", "1d")]
                if short:
                    yield from _group(None, key, column.name, short, ["sum", "max"])
                yield from _group(None, key, column.name, ["all"], ["wmean", "wratio"])
                yield from _group(None, key, column.name, [usual], ["above"])
        counted = [*others, *(c.name for c in self._categories()[: MAX_DISTINCT_COUNTS - len(others)])]
        for place, field in enumerate(counted):
            yield from _group(
                "number of different values" if place == 0 else None,
                key,
                field,
                [w for w in windows if w in ("1h", "1d", "7d")] or windows,
                ["distinct"],
            )
        for place, field in enumerate(counted):
            yield from _group("how usual each value is" if place == 0 else None, key, field, ["all"], ["share"])
        for entity in others:
            yield from _group(f"the same for each {entity}", entity, None, windows, ["count"])
            yield from _group(None, entity, None, [], ["since_last"])
            yield from _group(None, entity, key, windows[-2:], ["distinct"])
            for column in self._numbers()[:1]:
                yield from _group(None, entity, column.name, ["all"], ["mean", "zscore"])
        if self.roles.label is not None:
            matured = self._maturity_ms()
            long = [w for w in windows if WINDOWS[w] >= DAY_MS and 2 * (WINDOWS[w] + matured) <= self.span_ms]
            for place, entity in enumerate(self.entities if long else []):
                title = "share of known frauds, once the labels have matured" if place == 0 else None
                yield from _group(title, entity, None, long[-2:], ["fraud_rate"])

    def _numbers(self) -> list[Column]:
        """Number columns for window features, amounts first."""
        fit = [c for c in self.roles.numbers if not (_PLACES & set(c.words)) and c.n_distinct > 5]
        return sorted((c for c in fit if c.name not in self.roles.attributes), key=lambda c: not _is_amount(c))

    def _categories(self) -> list[Column]:
        return [c for c in self.roles.categories if c.n_distinct > 2 and c.name not in self.roles.attributes]

    def _alerts(self) -> Iterator[str]:
        yield "# How many alerts people can review: { rate = 0.005 }, { per_day = 50 } or"
        yield "# { cost = { missed = 100, review = 5, fraud_rate = 0.002 } }"
        yield "[alerts]"
        yield "budget = { rate = 0.005 }"


def _group(
    words: str | None, entity: str, field: str | None, windows: Sequence[str], stats: Sequence[str]
) -> Iterator[str]:
    if words:
        yield f"# {words}"
    yield "[[features]]"
    yield f'entity = "{entity}"'
    if field is not None:
        yield f'field = "{field}"'
    if windows:
        yield "windows = [" + ", ".join(f'"{window}"' for window in windows) + "]"
    yield "stats = [" + ", ".join(f'"{stat}"' for stat in stats) + "]"
    yield ""


def _is_amount(column: Column) -> bool:
    return bool(_AMOUNTS & set(column.words))


def _lowest(column: Column) -> float:
    lowest = cells.numbers(column.text).min()
    return float(lowest) if isinstance(lowest, int | float) else 0.0


def _one_line(words: str) -> str:
    """Text in one line, for a comment: names and cells may contain line breaks."""
    return "".join(c if c.isprintable() else "�" for c in words)
