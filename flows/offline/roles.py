"""Guess the role of each column of a file: id, time, entity, label or input."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import polars as pl

from flows.offline.columns import Column, Kind
from flows.offline.made import MADE
from pipelines.contracts.stream import DAY_MS, RESERVED
from pipelines.play import cells

MAX_INPUTS = 80
MAX_ENTITIES = 3
MAX_WORDS = 250  # number of values of a category that the model distinguishes
MAX_CATEGORIES_PER_ROW = 0.2  # a text with more different values than this share of the rows is not a category
WHO = ("customer", "client", "user", "account", "acct", "card", "cc", "pan", "member", "cardholder", "payer", "sender",
       "orig", "iban", "employee", "subscriber", "login", "username", "person", "kunde", "konto")  # fmt: skip
WHAT = ("terminal", "merchant", "shop", "store", "device", "sensor", "machine", "station", "host", "server", "ip",
        "email", "phone", "payee", "receiver", "recipient", "beneficiary", "dest", "vendor", "supplier", "seller",
        "session", "node", "meter", "vehicle", "driver", "unit", "engine", "src", "dst", "source", "asset", "pump",
        "page", "visitor", "household", "player", "partner", "airport", "airline")  # fmt: skip
WHERE = ("origin", "location", "site", "city", "place", "area", "zone", "room", "line", "plant", "house", "building",
         "channel", "branch", "office", "field", "farm", "tank", "process", "service", "app")  # fmt: skip
CALENDAR = {"year", "month", "day", "hour", "minute", "second", "weekday", "dow", "week", "quarter"}
CODES = {"code", "type", "class", "category", "status", "mcc", "zip", "zipcode", "postcode", "postal", "plz", "flag",
         "kind", "channel", "currency", "country", "gender", "sex", "region", "state", "month", "version"}  # fmt: skip
LABELS = ("is_fraud", "isfraud", "fraud", "fraudulent", "fraud_flag", "tx_fraud", "is_anomaly", "anomaly", "is_attack",
          "attack", "outlier", "is_outlier", "chargeback", "label", "class", "target", "y", "malicious")  # fmt: skip
_SURE_LABELS = set(LABELS) - {"class", "target", "y", "label"}
_ANSWER_WORDS = {"fraud", "fraudulent", "anomaly", "attack", "outlier", "chargeback", "isfraud", "flagged", "scenario"}


@dataclass
class Roles:
    """The role of each column.

    Args:
        omitted: columns that are not used.
        attributes: field names of columns that describe the key, such as its age; they have no history.
        words: explanation of each column, by field name.
    """

    event_id: Column | None = None
    time: Column | None = None
    label: Column | None = None
    entities: list[Column] = field(default_factory=list)
    numbers: list[Column] = field(default_factory=list)
    categories: list[Column] = field(default_factory=list)
    omitted: list[Column] = field(default_factory=list)
    attributes: set[str] = field(default_factory=set)
    words: dict[str, str] = field(default_factory=dict)


def roles_of(columns: Sequence[Column]) -> Roles:
    """Guess the role of every column."""
    roles = Roles()
    left = list(columns)

    def take(column: Column | None, words: str) -> Column | None:
        if column is not None:
            left.remove(column)
            roles.words[column.name] = words
        return column

    label = _label(left)
    roles.label = take(label, _label_words(label) if label else "")
    time = _time(left)
    roles.time = take(time, _time_words(time) if time else "")
    event_id = _event_id(left)
    roles.event_id = take(event_id, "text, the event id: every row has a different value")
    entities = _entities(left)
    if entities:
        roles.attributes = {c.name for c in left if c not in entities and _describes(c, entities[0])}
    for place, entity in enumerate(entities):
        part = "used as key" if place == 0 else "another entity with its own history"
        roles.entities.append(entity)
        take(entity, f"text, {part}: {_repeats(entity)}")
    for column in left:
        _place(column, roles)
    return roles


def _place(column: Column, roles: Roles) -> None:
    """An input of the model, or omitted."""

    def omit(why: str) -> None:
        roles.omitted.append(column)
        roles.words[column.name] = f"omitted: {why}"

    missing = column.n_missing / column.n_rows
    seen = f", missing in {missing:.0%} of the rows" if missing >= 0.005 else ""
    if column.kind == Kind.EMPTY:
        omit("it is empty")
    elif column.kind == Kind.NESTED:
        omit("it contains lists, records or bytes; use plain columns instead")
    elif column.kind == Kind.TIME:
        omit("it is a second time; if it matters, add a column with the hours between the two times")
    elif column.name in RESERVED or column.name in MADE:
        omit("Unmask uses this name itself; rename the column to use it")
    elif roles.label is not None and _ANSWER_WORDS & set(column.words):
        omit("it looks like a copy of the label, and would tell the model the answer")
    elif roles.label is not None and _tells(column, roles.label):
        omit("its values determine the label, so it was probably written after the label was known")
    elif roles.time is not None and column.kind == Kind.NUMBER and len(column.words) == 1 and column.noun in CALENDAR:
        omit("it is part of the time, which the model already uses")
    elif column.n_distinct == 1:
        omit(f"it has the same value in every row that has one ({_shown(column)})")
    elif len(roles.numbers) + len(roles.categories) >= MAX_INPUTS:
        omit(f"there are already {MAX_INPUTS} inputs; replace one of them if this one matters more")
    elif column.kind == Kind.NUMBER and not _is_code(column):
        roles.numbers.append(column)
        low, high = _range(column)
        roles.words[column.name] = f"number, from {low:g} to {high:g}{seen}"
    elif column.n_distinct > MAX_CATEGORIES_PER_ROW * (column.n_rows - column.n_missing):
        omit(f"free text, or an id that does not repeat: {_repeats(column)}")
    else:
        roles.categories.append(column)
        roles.words[column.name] = f"category, {column.n_distinct:,} different values, such as {_shown(column)}{seen}"


def _is_code(column: Column) -> bool:
    """Whether a number is an identifier."""
    if not column.is_whole:
        return False
    last = column.words[-1] if column.words else ""
    return column.n_distinct == 2 or (last in CODES and column.n_distinct <= 5_000) or column.says_id


def _label(columns: Sequence[Column]) -> Column | None:
    by_name = {"_".join(column.words): column for column in columns}
    for name in LABELS:
        column = by_name.get(name)
        if column is None or column.kind not in (Kind.NUMBER, Kind.TEXT) or column.n_distinct > 2:
            continue
        found = cells.labels(column.text)
        says = found.null_count() == column.text.null_count() and found.drop_nulls().n_unique() == 2
        if says and (name in _SURE_LABELS or _mean(found) < 0.3):
            return column
    return None


def _label_words(column: Column) -> str:
    share = _mean(cells.labels(column.text))
    return f"the label: {share:.2%} of the rows are fraud; used for training and evaluation, never as an input"


def _time(columns: Sequence[Column]) -> Column | None:
    there = [c for c in columns if c.kind == Kind.TIME and c.n_missing <= 0.02 * c.n_rows]

    def rank(column: Column) -> tuple[bool, bool, int]:
        birth = {"birth", "dob", "expiry", "expires", "signup", "joined", "opened", "modified", "updated", "end"}
        assert column.times is not None
        return not birth & set(column.words), column.times.has_clock, column.n_distinct

    return max(there, key=rank, default=None)


def _time_words(column: Column) -> str:
    assert column.times is not None
    zone = "" if column.times.has_zone else "; it has no time zone, so UTC is assumed"
    clock = "" if column.times.has_clock else "; it has no time of day, so the shortest window is one day"
    first, last = _day(column.times.ms.min()), _day(column.times.ms.max())
    return f"the event time, {column.times.how}: {first} to {last}{zone}{clock}"


def _event_id(columns: Sequence[Column]) -> Column | None:
    def fits(column: Column) -> bool:
        unique = column.n_missing == 0 and column.n_distinct >= 0.99 * column.n_rows
        plain = column.kind == Kind.TEXT or (column.kind == Kind.NUMBER and column.is_whole)
        if not (unique and plain):
            return False
        longest = column.text.str.len_chars().max()
        short = isinstance(longest, int) and longest <= 128
        rising = column.kind == Kind.NUMBER and column.says_id
        return short and (column.says_id or column.noun in ("event", "transaction", "tx", "trx") or rising)

    def rank(column: Column) -> tuple[bool, int]:
        return column.n_distinct == column.n_rows, -columns.index(column)

    return max((c for c in columns if fits(c)), key=rank, default=None)


def _entities(columns: Sequence[Column]) -> list[Column]:
    """The entities: the key, then at most `MAX_ENTITIES` - 1 others."""
    ranked = sorted(((_entity_rank(column), column) for column in columns), key=lambda found: -found[0])
    found = [column for rank, column in ranked if rank >= 1][:MAX_ENTITIES] or [c for rank, c in ranked[:1] if rank > 0]
    if not found:
        return []
    # A column with too many values for a category is more useful as an entity with a history.
    many = [c for c in columns if c.kind == Kind.TEXT and c.n_distinct > MAX_WORDS and c.rows_a_value >= 10]
    found += [
        c for c in many if c not in found and c.words and c.words[-1] not in CODES and not _describes(c, found[0])
    ]
    return found[:MAX_ENTITIES]


def _describes(column: Column, key: Column) -> bool:
    """Whether nearly every key has one value of the column. A number, such as an age, may change slightly."""
    if column.n_distinct < 2 or column.kind not in (Kind.NUMBER, Kind.TEXT):
        return False
    pairs = pl.DataFrame({"key": key.text, "value": column.text}).drop_nulls()
    counts = pairs.group_by("key").agg(pl.len(), pl.col("value").n_unique().alias("n")).filter(pl.col("len") >= 3)
    allowed = 1 + (counts["len"] * 0.02).clip(1, 5) if column.kind == Kind.NUMBER else pl.Series([1])
    return counts.height > 0 and _mean(counts["n"] <= allowed) >= 0.95


def _entity_rank(column: Column) -> float:
    """How well a column identifies a repeated entity; 0 = not at all."""
    plain = column.kind == Kind.TEXT or (column.kind == Kind.NUMBER and column.is_whole)
    if not plain or column.n_missing > 0.05 * column.n_rows or column.n_distinct < 2 or column.rows_a_value < 3:
        return 0.0
    if column.n_distinct < 5:  # too few for customers, enough for places and machines
        return 0.5 if column.noun in (*WHAT, *WHERE) and column.rows_a_value >= 100 else 0.0
    many = min(column.rows_a_value, 50.0) / 100 + min(column.n_distinct, 50) / 100
    if column.noun in WHO:
        return 3 + many
    if column.noun in WHAT:
        return 2 + many
    if column.noun in WHERE and column.n_distinct <= 200:
        return 0.5
    if column.says_id and not (column.words[-1] in CODES or column.n_distinct <= 50):
        return 1 + many
    return 0.0


def _tells(column: Column, label: Column) -> bool:
    """Whether the values on fraud rows never occur on other rows, so that they determine the label."""
    if column.n_distinct > 50:
        return False
    truth = pl.DataFrame({"value": column.text, "fraud": cells.labels(label.text)}).drop_nulls("fraud")
    shares = truth.group_by("value").agg(pl.col("fraud").mean(), pl.len())
    return bool(shares["fraud"].is_in([0.0, 1.0]).all()) and int(truth["fraud"].sum()) >= 5


def _range(column: Column) -> tuple[float, float]:
    found = cells.numbers(column.text).drop_nulls().to_numpy()
    return (float(np.min(found)), float(np.max(found))) if len(found) else (0.0, 0.0)


def _repeats(column: Column) -> str:
    times = column.rows_a_value
    often = f"{times:,.0f} times" if times >= 10 else f"{times:.1f} times"
    return f"{column.n_distinct:,} different values, each seen {often} on average"


def _shown(column: Column) -> str:
    value = str(column.text.drop_nulls().mode()[0])
    return f'"{value[:30]}..."' if len(value) > 30 else f'"{value}"'


def _mean(column: pl.Series) -> float:
    mean = column.mean()
    return float(mean) if isinstance(mean, int | float) else 0.0


def _day(ms: object) -> str:
    assert isinstance(ms, int)
    return str(np.datetime64(ms, "ms").astype("datetime64[D]" if ms % DAY_MS == 0 else "datetime64[m]")).replace(
        "T", " "
    )
