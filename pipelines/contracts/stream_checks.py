"""Checks across the tables of a stream file, and the stream that a valid file describes."""

import re
from collections.abc import Sequence
from datetime import date
from typing import Any

import msgspec

from pipelines.contracts.feature_rules import FeatureFault, fault_of
from pipelines.contracts.stream import (
    DAY_MS,
    HABIT_STATS,
    HASHED_STATS,
    ID_TYPES,
    LABEL_KEYS,
    LAST_STATS,
    NO_WINDOW_STATS,
    RESERVED,
    STATS,
    VALUE_STATS,
    Feature,
    Field,
    Labels,
    LivePeriod,
    Promotion,
    ReportFields,
    Reports,
    StormRules,
    Stream,
)
from pipelines.contracts.stream_tables import (
    TABLES,
    AlertsTable,
    BudgetTable,
    Document,
    Duration,
    FeaturesTable,
    FieldTable,
    LabelsTable,
    Problems,
    PromotionTable,
    ReportTable,
    Stat,
    StreamTable,
    Window,
    shown,
    suggesting,
)
from pipelines.contracts.toml_lines import Path

MAX_FEATURES = 1_000
MAX_SOURCES = 1_000
_IDS_OF_THE_LAKE = {"event_id": "event_id", "event_time_ms": "event_time"}  # these two may have reserved names
_ENTITY, _FIELD = "?entity", "?field"  # placeholders for a name that is missing or whose problem is already reported


class StreamChecks:
    """Checks that the structs cannot express: required keys and references to other keys.

    A mistake is reported where it was made; its consequences are not reported again.
    """

    def __init__(self, document: Document, raw: dict[str, Any], problems: Problems) -> None:
        self.document, self.raw, self.problems = document, raw, problems
        self.head = document.stream or StreamTable()
        self.fields = document.fields
        self.features: dict[str, Feature] = {}
        self._group_of: dict[str, int] = {}  # of each feature: its index in [[features]]

    def run(self) -> None:
        """Record every problem."""
        for name in ("stream", "fields"):
            if name not in self.raw and not self.problems.at((name,)):
                self.problems.add((), f"has no table [{name}]", "add it")
        self._check_head()
        self._check_labels()
        self._check_fields()
        self._check_features()
        self._check_lifetime()
        self._check_budget()
        self._check_group()
        self._check_cap()
        self._check_report()
        self._check_replay()

    def stream(self) -> Stream:
        """The stream of a file without problems."""
        head, labels, alerts = self.head, self.document.labels, self.document.alerts or AlertsTable()
        assert head.name is not None and head.event_id is not None and head.event_time is not None  # noqa: PT018
        must = (head.event_id, head.event_time, head.entities[0])
        return Stream(
            name=head.name,
            topics=head.topics or head.name,
            event_id=head.event_id,
            event_time=head.event_time,
            entities=tuple(head.entities),
            fields=tuple(_field(name, table, name in must) for name, table in self.fields.items()),
            features=tuple(self.features.values()),
            labels=_labels(labels, labels.maturity) if labels and labels.maturity else None,
            budget=dict(self.raw.get("alerts", {}).get("budget", {"rate": 0.005})),
            future_tolerance_ms=head.future_tolerance.ms,
            duplicate_memory_ms=head.duplicate_memory.ms,
            duplicate_memory_ids=head.duplicate_memory_ids,
            lifetime_memory_ms=head.lifetime_memory.ms,
            max_message_bytes=head.max_message_bytes,
            packed_scores=head.packed_scores,
            storms=_storms(alerts),
            review_share=alerts.review or 0.0,
            delayed_after_ms=alerts.delayed_after.ms,
            promotion=msgspec.convert(self.document.promotion or PromotionTable(), Promotion, from_attributes=True),
            report=_report(self.document.report or ReportTable()),
            replay=self._live_period(),
        )

    def _live_period(self) -> LivePeriod | None:
        replay = self.document.replay
        if replay is None or replay.live_from is None or replay.live_until is None:
            return None
        return LivePeriod(_day_ms(replay.live_from), _day_ms(replay.live_until))

    # --- [stream]

    def _check_head(self) -> None:
        if self.document.stream is None:
            return
        for key, example in (("name", '"payments"'), ("event_id", '"id"'), ("event_time", '"at"')):
            self._require(("stream",), key, example)
        self._require(("stream",), "entities", '["customer_id"]')
        self._check_reference(("stream", "event_id"), self.head.event_id, ID_TYPES)
        self._check_reference(("stream", "event_time"), self.head.event_time, ("time",))
        for name in self.head.entities:
            path = ("stream", "entities", self.raw["stream"]["entities"].index(name))
            self._check_reference(path, name, ID_TYPES)
            if self.head.entities.count(name) > 1:
                self.problems.add(path, f"has {name!r} twice", "remove one", value=name)
        if self.raw["stream"].get("entities") == []:
            self.problems.add(("stream", "entities"), "is empty", "list at least one field; the first is the Kafka key")

    def _check_reference(self, path: Path, name: str | None, types: Sequence[str]) -> None:
        """Check that a name is that of a field of one of these types."""
        if name is None or not self.fields:
            return
        demand = f"it must be a field of type {' or '.join(types)} under [fields]"
        verb = "has" if isinstance(path[-1], int) else "is"
        field = self.fields.get(name)
        if field is None:
            fitting = [n for n, f in self.fields.items() if f.type is None or f.type in types]
            fix = suggesting(name, fitting, demand)
            self.problems.add(path, f"{verb} {name!r}, which is not a field", fix, value=name)
        elif field.type is not None and field.type not in types:
            self.problems.add(path, f"{verb} {name!r}, which is a field of type {field.type}", demand, value=name)

    # --- [labels], [fields]

    def _check_labels(self) -> None:
        labels = self.document.labels
        if labels is None:
            return
        self._require(("labels",), "maturity", '"7d" (the delay until labels count)')
        if labels.maturity and labels.maturity.ms < labels.lag.ms and not self.problems.at(("labels", "lag")):
            said = f"is {labels.maturity}, which is less than the lag of {labels.lag}"
            self.problems.add(("labels", "maturity"), said, "it must be at least the lag", value=labels.maturity)
        if labels.column in self.fields:
            said = f"is {labels.column!r}, which is a field"
            fix = "the truth must not be a field of the event; remove the field"
            self.problems.add(("labels", "column"), said, fix, value=labels.column)
        for place, source in enumerate(labels.sources):
            if source in labels.sources[:place]:
                self.problems.add(("labels", "sources", place), f"has {source!r} twice", "remove one", value=source)
        if len(labels.sources) > MAX_SOURCES:
            fix = f"at most {MAX_SOURCES} can be ranked; labels of the others are the weakest"
            self.problems.add(("labels", "sources"), f"has {len(labels.sources):,} sources", fix)
        for name in {self.head.event_id, self.head.event_time, *self.head.entities} & {*LABEL_KEYS}:
            self.problems.add(
                ("fields", str(name)), "is a key of a label, which names the event, too", "rename the field"
            )

    def _check_fields(self) -> None:
        ids = (self.head.event_id, self.head.event_time)
        time_is_known = self.head.event_time in self.fields and self.fields[self.head.event_time].type in (None, "time")
        for name, field in self.fields.items():
            path = ("fields", name)
            if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
                valid = re.sub(r"\W", "_", name.strip(), flags=re.ASCII)
                valid = f"_{valid}" if valid[:1].isdigit() else valid or "_"
                fix = f"use letters, digits and _ here and in the events, such as {valid}"
                self.problems.add(path, "is not a valid name", fix, value=name)
            self._require(path, "type", '"number"')
            if field.min > field.max:
                self.problems.add(
                    (*path, "min"), f"is {field.min:g}, which is above max", f"it must be at most {field.max:g}"
                )
            if field.type == "time" and time_is_known and name != self.head.event_time:
                fix = "only the event time can be of type time; send an age as a number"
                self.problems.add((*path, "type"), "is 'time'", fix, value="time")
            if name in RESERVED and name not in ids and not self._is_unsure(_IDS_OF_THE_LAKE.get(name, "")):
                self.problems.add(path, "is the name of a column that the lake adds", "rename the field")
            if name in ("hour", "weekday"):
                self.problems.add(path, "is the name of a feature computed from the event time", "rename the field")
        if (
            self.fields
            and not self.problems.at(())
            and not (self._numbers() or self._categories() or self.document.features)
        ):
            fix = "add a field of type number or category, or a [[features]] table"
            self.problems.add(("fields",), "has nothing to learn from", fix)

    # --- [[features]]

    def _check_features(self) -> None:
        for index, table in enumerate(self.document.features):
            at = ("features", index)
            self._check_names(at, table)
            for stat in table.stats:
                self._check_stat(at, table, stat)
            self._require(at, "entity", '"customer_id"')
            self._require(at, "stats", '["count"]')
            for key, takers in (("factor", HABIT_STATS), ("last", LAST_STATS)):
                value = (self._raw(at) or {}).get(key)
                if value is not None and table.stats and not set(table.stats) & set(takers):
                    fix = f"only {', '.join(takers)} take one; remove it"
                    self.problems.add((*at, key), f"is {shown(value)}, which is not used", fix, value=value)
            if (self._raw(at) or {}).get("stats") == []:
                self.problems.add((*at, "stats"), "is empty", f"list at least one of {', '.join(STATS)}")
        if len(self.features) > MAX_FEATURES:
            fix = f"at most {MAX_FEATURES:,} are possible, because each needs memory per entity; use fewer windows"
            self.problems.add(("features",), f"has {len(self.features):,} features", fix)

    def _check_names(self, at: Path, table: FeaturesTable) -> None:
        """Check the entity and the field, regardless of the statistics."""
        if table.entity and (fault := self._fault_of(at, Feature("", "since_last", table.entity))):
            self._add_fault(at, fault, fault.value)
        if table.field and self.fields and table.field not in self.fields:
            fix = suggesting(table.field, self.fields, "it must be a field under [fields]")
            self.problems.add((*at, "field"), f"is {table.field!r}, which is not a field", fix, value=table.field)

    def _check_stat(self, at: Path, table: FeaturesTable, stat: Stat) -> None:
        takes_field = stat in VALUE_STATS or stat in HASHED_STATS
        entity, field = table.entity or _ENTITY, (table.field or _FIELD) if takes_field else None
        named = f"{entity}.{field}.{stat}" if takes_field else f"{entity}.{stat}"
        if stat in LAST_STATS:
            self._require(at, "last", "4")
            for last in range(1, (table.last or 1) + 1):
                self._add_feature(at, Feature(f"{named}.{last}", str(stat), entity, field, last=last))
        elif stat in NO_WINDOW_STATS:
            self._add_feature(at, Feature(named, str(stat), entity))
        elif table.windows:
            for window in table.windows:
                feature = Feature(f"{named}.{window}", str(stat), entity, field, window.ms, table.factor)
                self._add_feature(at, self._named_apart(feature), window)
        elif not self.problems.at((*at, "windows")):
            self.problems.add((*at, "windows"), "is missing", f'{stat} needs it, as in windows = ["1d", "7d"]')

    def _named_apart(self, feature: Feature) -> Feature:
        """The feature, with its factor in its name if an earlier feature differs from it only in the factor."""
        twin = self.features.get(feature.name)
        if twin is None or twin.factor == feature.factor or feature.stat not in HABIT_STATS:
            return feature
        head, stat, window = feature.name.rsplit(".", 2)
        return msgspec.structs.replace(feature, name=f"{head}.{stat}_{feature.factor:g}.{window}")

    def _add_feature(self, at: Path, feature: Feature, window: Window | None = None) -> None:
        fault = self._fault_of(at, feature)
        if fault is not None:
            self._add_fault(at, fault, window if fault.key == "windows" else fault.value)
        elif feature.name in self.features and "?" not in feature.name:
            said, first = f"computes {feature.name} a second time", self._group_of[feature.name]
            fix = "remove one" if first == at[1] else f"remove it here or from features.#{first + 1}"
            self.problems.add(at, said, fix, value=feature.name)
        self.features.setdefault(feature.name, feature)
        self._group_of.setdefault(feature.name, int(at[1]))

    def _add_fault(self, at: Path, fault: FeatureFault, value: str | None) -> None:
        listed = (self._raw(at) or {})[fault.key] if fault.key in ("windows", "stats") else None
        path = (*at, fault.key) if listed is None else (*at, fault.key, listed.index(value))
        verb = "is" if listed is None else "has"
        known = () if value in self.fields else fault.known
        said = "is missing" if value is None else f"{verb} {shown(value)}, which {fault.problem}"
        self.problems.add(path, said, suggesting(value, known, fault.fix), value=value)

    def _fault_of(self, at: Path, feature: Feature) -> FeatureFault | None:
        """Why a feature cannot be computed, unless that follows from a mistake that is already reported."""
        entity, field = str(feature.entity), feature.field
        entities, numbers = list(self.head.entities), self._numbers()
        hashed = [*self._categories(), *entities]
        if entity == _ENTITY or (entity in self.fields and self._is_unsure("entities")):
            entities.append(entity)
        if field == _FIELD and not self.problems.at((*at, "field")):
            feature = msgspec.structs.replace(feature, field=None)
        elif field is not None and self._is_unsure_of(field):
            numbers, hashed = [*numbers, field], [*hashed, field]
        return fault_of(feature, entities=entities, numbers=numbers, hashed=hashed, reports=self._reports())

    def _reports(self) -> Reports | None:
        """What labels report; where a mistake hides it, what allows every statistic."""
        labels = self.document.labels
        if labels is None or self.problems.at(("labels", "reports")):
            return "both" if self.problems.at(("labels",)) else None
        return _reports(labels)

    def _is_unsure_of(self, field: str) -> bool:
        """Whether the role of a field is unknown: its name, its type, or whether it is an entity."""
        return field not in self.fields or self.fields[field].type is None or self._is_unsure("entities")

    def _is_unsure(self, key: str) -> bool:
        """Whether a key of [stream] has a problem, so that its value is unknown."""
        return self.document.stream is None or self.problems.at(("stream", key))

    def _numbers(self) -> list[str]:
        keys = ("event_id", "event_time")
        ids = [name for key in keys if (name := getattr(self.head, key)) and not self.problems.at(("stream", key))]
        ids += self.head.entities
        return [name for name, field in self.fields.items() if field.type in ("int", "number") and name not in ids]

    def _categories(self) -> list[str]:
        return [name for name, field in self.fields.items() if field.type == "category"]

    # --- the longest window, [alerts], [report], [replay]

    def _check_lifetime(self) -> None:
        longest = max((w for table in self.document.features for w in table.windows if w.ms), key=_ms, default=None)
        if longest is not None and self.head.lifetime_memory.ms < _ms(longest):
            path = ("stream", "lifetime_memory")
            said = f"is {self.head.lifetime_memory}, which is less than the longest window ({longest})"
            self.problems.add(path, said, "it must be at least the longest window", value=self.head.lifetime_memory)

    def _check_budget(self) -> None:
        budget = self.document.alerts.budget if self.document.alerts else None
        if budget is None:
            return
        path = ("alerts", "budget")
        raw = self._raw(path) or {}
        if len(raw) != 1 and not self.problems.at(path):
            self.problems.add(path, f"has {len(raw)} keys", f"it {TABLES[BudgetTable]}", value=raw)
        if budget.cost is not None:
            self._require((*path, "cost"), "missed", "100")
            self._require((*path, "cost"), "review", "5")

    def _check_group(self) -> None:
        group = self.document.alerts.group if self.document.alerts else None
        if group is None:
            return
        path, keys = ("alerts", "group"), self.head.entities[:1]
        self._require(path, "entity", f'"{keys[0] if keys else "customer_id"}"')
        self._require(path, "within", '"1h"')
        if group.entity and keys and group.entity not in keys and not self._is_unsure("entities"):
            said = f"is {group.entity!r}, which is not the Kafka key"
            fix = f"it must be {keys[0]!r}, the first of the entities: only events of one key are all in one partition"
            self.problems.add((*path, "entity"), said, fix, value=group.entity)

    def _check_cap(self) -> None:
        alerts = self.document.alerts
        if alerts is None or alerts.cap is None:
            return
        path, budget = ("alerts", "cap"), alerts.budget.per_day if alerts.budget else None
        self._require(path, "per_day", "200")
        if alerts.cap.per_day and budget and alerts.cap.per_day < budget:
            said, fix = f"is {alerts.cap.per_day}, which is less than the budget", f"it must be at least {budget:g}"
            self.problems.add((*path, "per_day"), said, fix, value=alerts.cap.per_day)

    def _check_report(self) -> None:
        report = self.document.report
        if report is None:
            return
        for place, name in enumerate(report.segments):
            self._check_reference(("report", "segments", place), name, ("category",))
            if report.segments.index(name) < place:
                self.problems.add(("report", "segments", place), f"has {name!r} twice", "remove one", value=name)
        self._check_reference(("report", "value"), report.value, ("number", "int"))
        if report.value in (self.head.event_id, *self.head.entities) and not self.problems.at(("report", "value")):
            fix = "it must be a field with an amount of money"
            self.problems.add(("report", "value"), f"is {report.value!r}, which is an id", fix, value=report.value)

    def _check_replay(self) -> None:
        replay = self.document.replay
        if replay is None:
            return
        self._require(("replay",), "live_from", "2018-07-01")
        self._require(("replay",), "live_until", "2018-07-08")
        if replay.live_from and replay.live_until and replay.live_from >= replay.live_until:
            said = f"is {replay.live_until}, which is not after live_from ({replay.live_from})"
            fix = "it must be a later day"
            self.problems.add(("replay", "live_until"), said, fix, value=str(replay.live_until))

    # --- missing keys

    def _require(self, path: Path, key: str, example: str) -> None:
        table = self._raw(path)
        if table is not None and key not in table and not self.problems.at((*path, key)):
            self.problems.add((*path, key), "is missing", f"add {key} = {example}")

    def _raw(self, path: Path) -> dict[str, Any] | None:
        """The raw table at `path` of the file; None if there is none."""
        found: Any = self.raw
        for key in path:
            if isinstance(found, list) and isinstance(key, int):
                found = found[key]
            else:
                found = found.get(key) if isinstance(found, dict) else None
        return found if isinstance(found, dict) else None


def _ms(window: Window) -> int:
    return window.ms or 0


def _field(name: str, table: FieldTable, required: bool) -> Field:
    return Field(name, str(table.type), table.required or required, table.min, table.max, table.max_length)


def _labels(table: LabelsTable, maturity: Duration) -> Labels:
    return Labels(maturity.ms, table.lag.ms, table.column, _reports(table), tuple(table.sources))


def _reports(table: LabelsTable) -> Reports:
    return "both" if table.reports == "both" else "frauds"


def _storms(table: AlertsTable) -> StormRules:
    within = table.group.within if table.group else None
    return StormRules(within.ms if within else None, table.cap.per_day if table.cap else None)


def _report(table: ReportTable) -> ReportFields:
    return ReportFields(tuple(table.segments), table.value)


def _day_ms(day: date) -> int:
    return (day - date(1970, 1, 1)).days * DAY_MS
