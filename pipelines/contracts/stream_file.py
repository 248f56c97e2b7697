"""The stream file (TOML): reads, checks and explains it."""

import re
import tomllib
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any, NoReturn

import msgspec

from pipelines.contracts.stream import (
    ALL_TIME_STATS,
    FIELD_TYPES,
    ID_TYPES,
    LABEL_STATS,
    RESERVED,
    STATS,
    VALUE_STATS,
    Feature,
    Field,
    Labels,
    LivePeriod,
    Stream,
)
from pipelines.errors import StreamFileError

_UNIT_MS = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}


def load(path: Path) -> Stream:
    """Read a stream file.

    Raises:
        StreamFileError: the file is missing or breaks a rule; says line, value and mend.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise StreamFileError(f"{path}: cannot be read ({error.strerror}); give the path of a stream file") from error
    except UnicodeDecodeError as error:
        raise StreamFileError(f"{path}: is not UTF-8 (byte {error.start}); save it as UTF-8 text") from error
    return parse(text, where=str(path))


def parse(text: str, *, where: str = "stream file") -> Stream:
    """Parse the text of a stream file; `where` names it in errors."""
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise StreamFileError(f"{where}: not TOML: {error}") from error
    return _StreamFileReader(text, where, document).stream()


def duration_ms(text: Any) -> int:
    """Milliseconds of a duration such as "5m", "12h" or "7d".

    >>> duration_ms("90s")
    90000
    """
    match = re.fullmatch(r"([0-9]+)(ms|s|m|h|d)", text) if isinstance(text, str) else None
    if not match or int(match[1]) == 0:
        raise ValueError('must be a duration such as "60s", "5m", "12h" or "7d"')
    return int(match[1]) * _UNIT_MS[match[2]]


class _StreamFileReader:
    """Walks the parsed document; every complaint carries the line it is about."""

    def __init__(self, text: str, where: str, document: dict[str, Any]) -> None:
        self.lines = text.splitlines()
        self.where = where
        self.document = document

    def stream(self) -> Stream:
        known = ("stream", "fields", "labels", "features", "alerts", "replay")
        for name in self.document:
            if name not in known:
                self.fail((name,), name, f"unknown table; known are {', '.join(known)}")
        head = self.table("stream", required=True)
        self.only(
            "stream",
            head,
            ("name", "topics", "event_id", "event_time", "entities", "future_tolerance", "duplicate_memory",
             "duplicate_memory_ids", "lifetime_memory", "max_message_bytes"),
        )  # fmt: skip
        fields = self.fields()
        by_name = {f.name: f for f in fields}
        name = self.text("stream", head, "name")
        topics = self.text("stream", head, "topics", default=name)
        for key, value in (("name", name), ("topics", topics)):
            if not re.fullmatch(r"[a-zA-Z0-9_-]{1,100}", value):
                self.fail(("stream", key), value, "must be 1-100 letters, digits, _ or - (it names Kafka topics)")
        event_id = self.field_ref("stream", head, "event_id", by_name, ID_TYPES)
        event_time = self.field_ref("stream", head, "event_time", by_name, ("time",))
        entities = self.entities(head, by_name)
        labels = self.labels()
        ids = {event_id, event_time, *entities}
        fields = tuple(
            msgspec.structs.replace(f, required=True) if f.name in (event_id, event_time, entities[0]) else f
            for f in fields
        )
        for f in fields:
            if f.type == "time" and f.name not in ids:
                self.fail(
                    ("fields", f.name),
                    f.type,
                    "only the event time may be of type time; give the age as a number",
                )
        for f in fields:
            if f.name in RESERVED and f.name not in (event_id, event_time):
                self.fail(("fields", f.name), "", "the lake has a column of that name for itself; rename the field")
        features = self.features(entities, by_name, ids, labels)
        numbers = [f.name for f in fields if f.type in ("int", "number") and f.name not in ids]
        taken = {"hour", "weekday"} & {f.name for f in fields}
        if taken:
            self.fail(
                ("fields", taken.pop()),
                "",
                "hour and weekday are computed from the event time; rename the field",
            )
        if not numbers and not features and not any(f.type == "category" for f in fields):
            self.fail(
                ("fields",),
                "",
                "nothing to learn from: add a number or category field, or a [[features]] table",
            )
        return Stream(
            name=name,
            topics=topics,
            event_id=event_id,
            event_time=event_time,
            entities=entities,
            fields=fields,
            features=features,
            labels=labels,
            budget=self.budget(),
            future_tolerance_ms=self.duration("stream", head, "future_tolerance", "5m"),
            duplicate_memory_ms=self.duration("stream", head, "duplicate_memory", "2d"),
            duplicate_memory_ids=self.integer("stream", head, "duplicate_memory_ids", 10_000_000),
            lifetime_memory_ms=self.lifetime_memory(head, features),
            max_message_bytes=self.integer("stream", head, "max_message_bytes", 65_536),
            replay=self.replay(),
        )

    def lifetime_memory(self, head: dict[str, Any], features: tuple[Feature, ...]) -> int:
        lifetime_ms = self.duration("stream", head, "lifetime_memory", "400d")
        if lifetime_ms < max((f.window_ms or 0 for f in features), default=0):
            self.fail(("stream", "lifetime_memory"), head.get("lifetime_memory"), "must be at least the longest window")
        return lifetime_ms

    def fields(self) -> tuple[Field, ...]:
        table = self.table("fields", required=True)
        result = []
        for name, spec in table.items():
            if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
                self.fail(("fields", name), name, "a field's name must be letters, digits and _")
            if not isinstance(spec, dict):
                self.fail(("fields", name), spec, 'must be a table such as { type = "number", min = 0 }')
            for key in spec:
                if key not in ("type", "required", "min", "max", "max_length"):
                    self.fail(("fields", name), key, "unknown key; known are type, required, min, max, max_length")
            kind = spec.get("type")
            if kind not in FIELD_TYPES:
                self.fail(("fields", name), kind, f"type must be one of {', '.join(FIELD_TYPES)}")
            for key in ("min", "max"):
                if key in spec and (isinstance(spec[key], bool) or not isinstance(spec[key], int | float)):
                    self.fail(("fields", name), spec[key], f"{key} must be a number")
            if not isinstance(spec.get("required", False), bool):
                self.fail(("fields", name), spec["required"], "required must be true or false")
            length = spec.get("max_length", 256)
            if isinstance(length, bool) or not isinstance(length, int) or length < 1:
                self.fail(("fields", name), length, "max_length must be a whole number of characters, at least 1")
            field = Field(
                name,
                kind,
                spec.get("required", False),
                float(spec.get("min", -1e15)),
                float(spec.get("max", 1e15)),
                length,
            )
            if not field.min <= field.max:
                self.fail(("fields", name), spec.get("min"), "min must not be above max")
            result.append(field)
        return tuple(result)

    def entities(self, head: dict[str, Any], by_name: dict[str, Field]) -> tuple[str, ...]:
        names = head.get("entities")
        if not isinstance(names, list) or not names:
            self.fail(
                ("stream", "entities"),
                names,
                'must list at least one field, e.g. ["customer_id"]; the first is the key',
            )
        for name in names:
            if name not in by_name or by_name[name].type not in ID_TYPES:
                self.fail(("stream", "entities"), name, "must be a field of type int or text under [fields]")
        if len(set(names)) != len(names):
            self.fail(("stream", "entities"), names, "an entity is named twice")
        return tuple(names)

    def labels(self) -> Labels | None:
        if "labels" not in self.document:
            return None
        table = self.table("labels")
        self.only("labels", table, ("maturity", "lag", "column"))
        if "maturity" not in table:
            self.fail(("labels",), "", 'maturity is missing: the delay until labels count, e.g. maturity = "7d"')
        lag = self.duration("labels", table, "lag", "60s")
        maturity = self.duration("labels", table, "maturity", "7d")
        if maturity < lag:
            self.fail(("labels", "maturity"), table["maturity"], "must be at least the lag")
        column = self.text("labels", table, "column", default="label")
        if column in self.document["fields"]:
            self.fail(("labels", "column"), column, "the truth must not be a field of the event")
        return Labels(maturity, lag, column)

    def features(
        self, entities: tuple[str, ...], by_name: dict[str, Field], ids: set[str], labels: Labels | None
    ) -> tuple[Feature, ...]:
        tables = self.document.get("features", [])
        if not isinstance(tables, list):
            self.fail(("features",), tables, "write [[features]], with two brackets, once for each group")
        result: dict[str, Feature] = {}
        for index, table in enumerate(tables):
            for feature in self.feature_group(index, table, entities, by_name, ids, labels):
                if feature.name in result:
                    self.fail(("features", index), feature.name, "is computed twice; drop one")
                result[feature.name] = feature
        return tuple(result.values())

    def feature_group(
        self,
        index: int,
        table: dict[str, Any],
        entities: tuple[str, ...],
        by_name: dict[str, Field],
        ids: set[str],
        labels: Labels | None,
    ) -> list[Feature]:
        def fail(key: str, value: Any, mend: str) -> NoReturn:
            self.fail(("features", index, key), value, mend)

        for key in table:
            if key not in ("entity", "field", "windows", "stats"):
                fail(key, key, "unknown key; known are entity, field, windows, stats")
        entity, field = table.get("entity"), table.get("field")
        if entity not in entities:
            fail("entity", entity, f"must be one of the stream's entities: {', '.join(entities)}")
        stats, windows = table.get("stats"), table.get("windows", [])
        if not isinstance(stats, list) or not stats:
            fail("stats", stats, f"must list at least one of {', '.join(STATS)}")
        if not isinstance(windows, list):
            fail("windows", windows, 'must be a list such as ["1h", "7d", "all"]')
        result = []
        for stat in stats:
            if stat not in STATS:
                fail("stats", stat, f"must be one of {', '.join(STATS)}")
            if stat in LABEL_STATS and labels is None:
                fail("stats", stat, "needs labels: add a [labels] table with maturity")
            if stat in VALUE_STATS and (
                field not in by_name or field in ids or by_name[field].type not in ("int", "number")
            ):
                fail("field", field, f"{stat} needs field = a field of type int or number")
            if stat == "distinct" and (
                field not in by_name or field == entity or (by_name[field].type != "category" and field not in entities)
            ):
                fail("field", field, "distinct needs field = a category field or another entity")
            named = f"{entity}.{field}.{stat}" if stat in VALUE_STATS or stat == "distinct" else f"{entity}.{stat}"
            if stat == "since_last":
                result.append(Feature(named, stat, entity))
                continue
            if not windows:
                fail("windows", windows, f'{stat} needs windows, e.g. ["1d", "7d"]')
            for window in windows:
                result.append(self.windowed(index, named, stat, entity, field, window))
        return result

    def windowed(self, index: int, named: str, stat: str, entity: str, field: str | None, window: Any) -> Feature:
        own_field = field if stat in VALUE_STATS or stat == "distinct" else None
        if window == "all":
            if stat not in ALL_TIME_STATS:
                self.fail(
                    ("features", index, "windows"),
                    window,
                    f"{stat} has no all-time form; those are {', '.join(ALL_TIME_STATS)}",
                )
            return Feature(f"{named}.all", stat, entity, own_field, None)
        try:
            return Feature(f"{named}.{window}", stat, entity, own_field, duration_ms(window))
        except ValueError as error:
            self.fail(("features", index, "windows"), window, f'{error}, or "all"')

    def budget(self) -> dict[str, Any]:
        table = self.table("alerts")
        self.only("alerts", table, ("budget",))
        budget = table.get("budget", {"rate": 0.005})
        shapes: dict[str, Callable[[Any], bool]] = {
            "rate": lambda v: _is_number(v) and 0 < v < 1,
            "per_day": lambda v: _is_number(v) and v > 0,
            "cost": lambda v: (
                isinstance(v, dict)
                and {"missed", "review"} <= set(v) <= {"missed", "review", "fraud_rate"}
                and all(_is_number(x) and x > 0 for x in v.values())
                and v.get("fraud_rate", 0) < 1
            ),
        }
        if not isinstance(budget, dict) or len(budget) != 1 or next(iter(budget)) not in shapes:
            self.fail(
                ("alerts", "budget"),
                budget,
                "must be one of { rate = 0.005 }, { per_day = 50 }, { cost = { missed = 100, review = 5 } }",
            )
        kind, value = next(iter(budget.items()))
        if not shapes[kind](value):
            mend = {
                "rate": "rate must be a share of events between 0 and 1",
                "per_day": "per_day must be a number above 0",
                "cost": "cost must be { missed = ..., review = ... }, both above 0, and may have fraud_rate, between 0 "
                "and 1: the share of events believed to be fraud, for as long as no fraud is known",
            }
            self.fail(("alerts", "budget"), value, mend[kind])
        return dict(budget)

    def replay(self) -> LivePeriod | None:
        if "replay" not in self.document:
            return None
        table = self.table("replay")
        self.only("replay", table, ("live_from", "live_until"))
        days = []
        for key in ("live_from", "live_until"):
            day = table.get(key)
            if type(day) is not date:
                self.fail(("replay", key), day, "must be a day such as 2018-07-01, without quotes (UTC)")
            days.append((day - date(1970, 1, 1)).days * _UNIT_MS["d"])
        if days[0] >= days[1]:
            self.fail(("replay", "live_until"), str(table["live_until"]), "must be after live_from")
        return LivePeriod(*days)

    def table(self, name: str, *, required: bool = False) -> dict[str, Any]:
        table = self.document.get(name, {})
        if required and name not in self.document:
            self.fail((), "", f"the table [{name}] is missing")
        if not isinstance(table, dict):
            self.fail((name,), table, f"[{name}] must be a table")
        return table

    def only(self, name: str, table: dict[str, Any], known: tuple[str, ...]) -> None:
        for key in table:
            if key not in known:
                self.fail((name, key), key, f"unknown key; known are {', '.join(known)}")

    def text(self, name: str, table: dict[str, Any], key: str, *, default: str | None = None) -> str:
        value = table.get(key, default)
        if not isinstance(value, str) or not value:
            self.fail((name, key), value, f"{key} is required and must be a text")
        return value

    def integer(self, name: str, table: dict[str, Any], key: str, default: int) -> int:
        value = table.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            self.fail((name, key), value, "must be a whole number above 0")
        return value

    def duration(self, name: str, table: dict[str, Any], key: str, default: str) -> int:
        try:
            return duration_ms(table.get(key, default))
        except ValueError as error:
            self.fail((name, key), table.get(key), str(error))

    def field_ref(
        self, name: str, table: dict[str, Any], key: str, by_name: dict[str, Field], types: tuple[str, ...]
    ) -> str:
        value = self.text(name, table, key)
        if value not in by_name or by_name[value].type not in types:
            self.fail((name, key), value, f"must be a field of type {' or '.join(types)} under [fields]")
        return value

    def fail(self, path: tuple[str | int, ...], value: Any, mend: str) -> NoReturn:
        line = self.line_of(path)
        at = f"{self.where}, line {line}" if line else self.where
        named = ".".join(str(p) if isinstance(p, str) else f"#{p + 1}" for p in path)
        shown = f" = {value!r}" if value not in ("", None) else ""
        raise StreamFileError(f"{at}: {named}{shown}: {mend}" if named else f"{at}: {mend}")

    def line_of(self, path: tuple[str | int, ...]) -> int:
        """Line (1-based) of the deepest part of `path` that stands in the file, 0 where none does."""
        table, skip, found = "", 0, 0
        if path:
            skip = path[1] if len(path) > 1 and isinstance(path[1], int) else 0
        key = path[-1] if len(path) > 1 and isinstance(path[-1], str) else None
        for number, line in enumerate(self.lines, start=1):
            header = re.match(r"\s*\[{1,2}\s*([^\]]+?)\s*\]{1,2}", line)
            if header:
                table = header[1]
                if path and table.split(".")[0] == path[0]:
                    if skip == 0 and not found:
                        found = number
                    elif not found:
                        skip -= 1
                    else:
                        skip = -1
                    if key and table == f"{path[0]}.{key}":
                        return number
                continue
            inside = path and table.split(".")[0] == path[0] and found and skip >= 0
            if inside and key and re.match(rf'\s*"?{re.escape(key)}"?\s*[=.]', line):
                return number
        return found


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
