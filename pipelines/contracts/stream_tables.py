"""The tables of a stream file as typed structs; reading them collects all structural mistakes."""

import json
import re
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from datetime import date
from difflib import get_close_matches
from types import UnionType
from typing import Annotated, Any, Self, TypeVar, Union, get_args, get_origin, get_type_hints

import msgspec
from msgspec import Meta, Struct

from pipelines.contracts.feature_rules import Panes
from pipelines.contracts.stream import FIELD_TYPES, STATS, Approval, Reports
from pipelines.contracts.toml_lines import Path
from pipelines.errors import Problem

T = TypeVar("T", bound=Struct)
_UNIT_MS = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
_LONGEST_MS = 3_660 * _UNIT_MS["d"]
# Common names from other tools, mapped to ours.
_ALSO_CALLED = {
    "string": "text", "str": "text", "varchar": "text", "float": "number", "double": "number", "decimal": "number",
    "integer": "int", "long": "int", "bool": "category", "boolean": "category", "enum": "category",
    "datetime": "time", "timestamp": "time", "date": "time",
    "avg": "mean", "average": "mean", "stddev": "std", "nunique": "distinct", "n_unique": "distinct",
    "minimum": "min", "maximum": "max", "total": "sum", "last": "since_last",
}  # fmt: skip


def duration_ms(text: Any) -> int:
    """Milliseconds of a duration such as "5m", "12h" or "7d"; at most 3,660 days.

    Raises:
        ValueError: it is not a duration, or it is too long.

    Example:
        >>> duration_ms("90s")
        90000
    """
    match = re.fullmatch(r"([0-9]+)(ms|s|m|h|d)", text) if isinstance(text, str) else None
    if not match or set(match[1]) == {"0"}:
        raise ValueError('must be a duration such as "60s", "5m", "12h" or "7d"')
    if len(match[1]) > 15 or int(match[1]) * _UNIT_MS[match[2]] > _LONGEST_MS:
        raise ValueError('must be a duration of at most 10 years ("3660d")')
    return int(match[1]) * _UNIT_MS[match[2]]


class Duration(str):
    """A duration such as "7d"."""

    @classmethod
    def read(cls, raw: Any) -> Self:
        duration_ms(raw)
        return cls(raw)

    @property
    def ms(self) -> int:
        return duration_ms(str(self))


class Window(str):
    """A duration, or "all" for the whole past."""

    @classmethod
    def read(cls, raw: Any) -> Self:
        try:
            window_ms = None if raw == "all" else duration_ms(raw)
        except ValueError as error:
            raise ValueError(f'{error}, or "all"') from None
        if window_ms is not None:
            Panes.of(window_ms)
        return cls(raw)

    @property
    def ms(self) -> int | None:
        return None if self == "all" else duration_ms(str(self))


class _Choice(str):
    """One of a list of words."""

    known: tuple[str, ...] = ()

    @classmethod
    def read(cls, raw: Any) -> Self:
        if raw not in cls.known:
            raise ValueError(f"must be one of {', '.join(cls.known)}")
        return cls(raw)


class FieldType(_Choice):
    """The type of a field."""

    known = FIELD_TYPES


class Stat(_Choice):
    """The statistic of a feature."""

    known = STATS


class ReportKind(_Choice):
    """What labels report."""

    known = get_args(Reports)


class ApprovalKind(_Choice):
    """Who decides after the gate."""

    known = get_args(Approval)


TopicName = Annotated[
    str,
    Meta(pattern="^[a-zA-Z0-9_-]{1,100}$", description="must be 1-100 letters, digits, _ or - (it names Kafka topics)"),
]
Text = Annotated[str, Meta(min_length=1, description="must be text in quotes")]
Source = Annotated[str, Meta(min_length=1, max_length=256, description="must be text in quotes, of 1-256 characters")]
Flag = Annotated[bool, Meta(description="must be true or false")]
Number = Annotated[float, Meta(ge=-1e300, le=1e300, description="must be a finite number")]
Positive = Annotated[float, Meta(gt=0, le=1e300, description="must be a number greater than 0")]
Factor = Annotated[float, Meta(gt=1, le=1e6, description="must be a number greater than 1, such as 3")]
Last = Annotated[int, Meta(ge=1, le=32, description="must be a whole number of events from 1 to 32")]
Share = Annotated[float, Meta(gt=0, lt=1, description="must be a share of events between 0 and 1, such as 0.005")]
Day = Annotated[date, Meta(description="must be a day such as 2018-07-01, without quotes (UTC)")]
Length = Annotated[int, Meta(ge=1, le=1_000_000, description="must be a whole number from 1 to 1,000,000")]
Bytes = Annotated[int, Meta(ge=1, le=2**26, description="must be a whole number of bytes from 1 to 67,108,864")]
Alerts = Annotated[int, Meta(ge=1, le=10**9, description="must be a whole number of alerts, at least 1")]
Count = Annotated[int, Meta(ge=0, le=10**9, description="must be a whole number, at least 0")]
AtMostOne = Annotated[float, Meta(ge=0, le=1, description="must be a number from 0 to 1")]
Times = Annotated[float, Meta(ge=1, le=1e6, description="must be a number of times, at least 1")]
Ids = Annotated[int, Meta(ge=1, le=10**10, description="must be a whole number from 1 to 10,000,000,000")]


class StreamTable(Struct, kw_only=True):
    """[stream]"""

    name: TopicName | None = None
    topics: TopicName | None = None
    event_id: Text | None = None
    event_time: Text | None = None
    entities: list[Text] = []
    future_tolerance: Duration = Duration("5m")
    duplicate_memory: Duration = Duration("2d")
    duplicate_memory_ids: Ids = 10_000_000
    lifetime_memory: Duration = Duration("400d")
    max_message_bytes: Bytes = 65_536
    packed_scores: Flag = False


class FieldTable(Struct, kw_only=True):
    """One line of [fields]."""

    type: FieldType | None = None
    required: Flag = False
    min: Number = -1e15
    max: Number = 1e15
    max_length: Length = 256


class LabelsTable(Struct, kw_only=True):
    """[labels]"""

    maturity: Duration | None = None
    lag: Duration = Duration("60s")
    reports: ReportKind = ReportKind("frauds")
    sources: list[Source] = []
    column: Text = "label"


class FeaturesTable(Struct, kw_only=True):
    """One of [[features]]."""

    entity: Text | None = None
    field: Text | None = None
    windows: list[Window] = []
    stats: list[Stat] = []
    factor: Factor = 3.0
    last: Last | None = None


class CostTable(Struct, kw_only=True):
    """Costs of a missed fraud and of a review; `fraud_rate` is assumed as long as no fraud is known."""

    missed: Positive | None = None
    review: Positive | None = None
    fraud_rate: Share | None = None


class BudgetTable(Struct, kw_only=True):
    """One of the three kinds of alert budget."""

    rate: Share | None = None
    per_day: Positive | None = None
    cost: CostTable | None = None


class GroupTable(Struct, kw_only=True):
    """Which alerts are one group: those of an entity within a time."""

    entity: Text | None = None
    within: Duration | None = None


class CapTable(Struct, kw_only=True):
    """The maximum number of full alerts."""

    per_day: Alerts | None = None


class AlertsTable(Struct, kw_only=True):
    """[alerts]"""

    budget: BudgetTable | None = None
    group: GroupTable | None = None
    cap: CapTable | None = None
    review: Share | None = None
    delayed_after: Duration = Duration("60s")


class PromotionTable(Struct, kw_only=True):
    """[promotion]"""

    approval: ApprovalKind = ApprovalKind("automatic")
    min_frauds: Count = 30
    max_loss: AtMostOne = 0.02
    max_alerts: Times = 1.5
    max_bias: Times = 3.0
    max_one_field: AtMostOne = 0.6
    max_drift: Positive = 1.0
    min_reasons: AtMostOne = 0.5
    max_time: Times = 4.0
    shadow_events: Count = 0


class ReportTable(Struct, kw_only=True):
    """[report]"""

    segments: list[Text] = []
    value: Text | None = None


class ReplayTable(Struct, kw_only=True):
    """[replay]"""

    live_from: Day | None = None
    live_until: Day | None = None


class Document(Struct, kw_only=True):
    """A whole stream file. A missing or invalid key has its default; the problem is recorded."""

    stream: StreamTable | None = None
    fields: dict[str, FieldTable] = {}
    labels: LabelsTable | None = None
    features: list[FeaturesTable] = []
    alerts: AlertsTable | None = None
    promotion: PromotionTable | None = None
    report: ReportTable | None = None
    replay: ReplayTable | None = None


# The required form of a value of each kind.
TABLES: Mapping[Any, str] = {
    FieldTable: 'must be a table such as { type = "number", min = 0 }',
    BudgetTable: "must be one of { rate = 0.005 }, { per_day = 50 }, { cost = { missed = 100, review = 5 } }",
    CostTable: "must be a table such as { missed = 100, review = 5 }",
    GroupTable: 'must be a table such as { entity = "customer_id", within = "1h" }',
    CapTable: "must be a table such as { per_day = 200 }",
}
_LISTS: Mapping[Any, str] = {
    FeaturesTable: "must be written as [[features]], with two brackets, once for each group",
    Window: 'must be a list such as ["1h", "7d", "all"]',
    Stat: 'must be a list such as ["count", "mean"]',
    Source: 'must be a list of sources of labels such as ["chargeback", "analyst"]; the first one is the strongest',
    Text: 'must be a list of fields such as ["customer_id"]',
}


class Problems:
    """The problems found so far, each with its line.

    Args:
        lines: line numbers from `pipelines.contracts.toml_lines.lines_of`.
    """

    def __init__(self, lines: Mapping[Path, int]) -> None:
        self._lines = lines
        self._found: dict[tuple[Path, str], Problem] = {}
        self._meant: set[Path] = set()

    def add(self, path: Path, problem: str, fix: str, *, value: Any = None) -> None:
        """Record a problem at `path`; the same problem is recorded only once."""
        line = next((self._lines[path[:n]] for n in range(len(path), 0, -1) if path[:n] in self._lines), 0)
        text = "" if value is None else shown(value)
        self._found.setdefault((path, problem), Problem(line, name_of(path), text, problem, fix))

    def add_unknown(self, path: Path, known: Collection[str]) -> None:
        """Record that the last key of `path` is unknown."""
        key = path[-1]
        what = f"is not a known {'key' if len(path) > 1 else 'table'}"
        self.add(path, what, suggesting(key, known, f"known names: {', '.join(known)}"), value=key)
        self._meant.add((*path[:-1], meant_by(key, known)))

    def at(self, path: Path) -> bool:
        """Whether there is a problem at or below `path`, or an unknown key that is probably a misspelling of it."""
        return path in self._meant or any(found[: len(path)] == path for found, _ in self._found)

    def sorted(self) -> list[Problem]:
        """All problems in the order of the file."""
        return sorted(self._found.values(), key=lambda problem: problem.line)


def name_of(path: Path) -> str:
    """The name of a path in messages.

    >>> name_of(("features", 1, "stats", 0)), name_of(("fields", "amount", "max"))
    ('features.#2.stats', 'fields.amount.max')
    """
    if len(path) > 2 and isinstance(path[-1], int):
        path = path[:-1]
    return ".".join(key if isinstance(key, str) else f"#{key + 1}" for key in path)


def shown(value: Any) -> str:
    """A value as text for a message, shortened.

    >>> shown("a"), shown(True), shown([1, "b"])
    ("'a'", 'true', '[1, "b"]')
    """
    text = repr(str(value)) if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)
    return text if len(text) <= 80 else f"{text[:77]}..."


def meant_by(word: Any, known: Iterable[str]) -> str:
    """The known word that was probably meant, or "".

    >>> meant_by("windws", ["windows", "stats"]), meant_by("string", ["text", "int"])
    ('windows', 'text')
    """
    lower = str(word).lower().strip()
    by_lower = {name.lower(): name for name in known}
    close = [_ALSO_CALLED[lower]] if _ALSO_CALLED.get(lower) in by_lower else get_close_matches(lower, by_lower, n=1)
    return by_lower[close[0]] if close else ""


def suggesting(word: Any, known: Iterable[str], fix: str) -> str:
    """`fix`, preceded by a suggestion if a similar known word exists.

    >>> suggesting("windws", ["windows", "stats"], "known names: windows, stats")
    "did you mean 'windows'? Known names: windows, stats"
    """
    meant = meant_by(word, known)
    return f"did you mean {meant!r}? {fix[:1].upper()}{fix[1:]}" if meant and meant != word else fix


def read_document(raw: dict[str, Any], problems: Problems) -> Document:
    """A parsed TOML document as structs; invalid values are recorded and have their default."""
    return _read_table(raw, Document, (), problems)


class _BrokenError(Exception):
    """A value that cannot be read; the problem is recorded."""


def _read(raw: Any, hint: Any, path: Path, problems: Problems) -> Any:
    """The value at `path`, converted to the type `hint`."""
    if get_origin(hint) in (Union, UnionType):  # "... | None": TOML has no null
        hint = get_args(hint)[0]
    if get_origin(hint) is list:
        return _read_list(raw, get_args(hint)[0], path, problems)
    if get_origin(hint) is dict:
        return _read_fields(raw, path, problems)
    if isinstance(hint, type) and issubclass(hint, Struct):
        return _read_table(raw, hint, path, problems)
    try:
        return msgspec.convert(raw, hint, dec_hook=lambda kind, value: kind.read(value))
    except msgspec.ValidationError as error:
        fix = f"it {_description(hint) or error}"
        problems.add(path, _is(raw, path), suggesting(raw, getattr(hint, "known", ()), fix), value=raw)
        raise _BrokenError from None


def _read_table(raw: Any, kind: type[T], path: Path, problems: Problems) -> T:
    _must_be(dict, raw, TABLES.get(kind, f"must be a table: [{name_of(path)}]"), path, problems)
    hints = get_type_hints(kind, include_extras=True)
    values = {}
    for key, value in raw.items():
        if key in hints:
            with suppress(_BrokenError):
                values[key] = _read(value, hints[key], (*path, key), problems)
        else:
            problems.add_unknown((*path, key), hints)
    return kind(**values)


def _read_list(raw: Any, hint: Any, path: Path, problems: Problems) -> list[Any]:
    _must_be(list, raw, _LISTS[hint], path, problems)
    items = []
    for place, item in enumerate(raw):
        try:
            items.append(_read(item, hint, (*path, place), problems))
        except _BrokenError:
            if hint is FeaturesTable:
                items.append(FeaturesTable())  # so that later items keep their index
    return items


def _read_fields(raw: Any, path: Path, problems: Problems) -> dict[str, FieldTable]:
    _must_be(dict, raw, "must be a table: [fields]", path, problems)
    fields = {}
    for name, table in raw.items():
        fields[name] = FieldTable()  # an invalid field still counts as a field, of unknown type
        with suppress(_BrokenError):
            fields[name] = _read_table(table, FieldTable, (*path, name), problems)
    return fields


def _must_be(kind: type, raw: Any, demand: str, path: Path, problems: Problems) -> None:
    if not isinstance(raw, kind):
        problems.add(path, _is(raw, path), f"it {demand}", value=raw)
        raise _BrokenError


def _is(raw: Any, path: Path) -> str:
    in_list = len(path) > 2 and isinstance(path[-1], int)
    return f"{'has' if in_list else 'is'} {shown(raw)}"


def _description(hint: Any) -> str:
    return next((meta.description or "" for meta in getattr(hint, "__metadata__", ())), "")
