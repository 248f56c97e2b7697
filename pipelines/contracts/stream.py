"""A stream: the schema of one kind of event, and the features computed from it."""

from collections.abc import Mapping
from typing import Any, Literal

import msgspec

FIELD_TYPES = ("int", "number", "text", "category", "time")
ID_TYPES = ("int", "text")
LABEL_WINDOW_STATS = ("fraud_rate", "fraud_count", "labelled_count", "smoothed_fraud_rate")
LEGIT_STATS = ("since_legit", "fraud_run", "fraud_run_age")  # need reports of legitimate events
LABEL_HISTORY_STATS = ("since_fraud", *LEGIT_STATS)
LABEL_STATS = (*LABEL_WINDOW_STATS, *LABEL_HISTORY_STATS)
LAST_STATS = ("last_age", "last_hour", "last_value")  # of one of the entity's last events
NO_WINDOW_STATS = ("since_last", *LAST_STATS, *LABEL_HISTORY_STATS)
HABIT_STATS = ("above", "wmean", "wratio")  # against the entity's own winsorised mean; they take a factor
VALUE_STATS = ("sum", "mean", "std", "min", "max", "ratio", "zscore", *HABIT_STATS, "last_value")
HASHED_STATS = ("distinct", "share")
ENTITY_STATS = ("count", "since_last", "last_age", "last_hour", "hour_share", *LABEL_STATS)
STATS = (*ENTITY_STATS, *VALUE_STATS, *HASHED_STATS)
LIFETIME_STATS = ("share", "hour_share")  # only for the window "all"
ALL_TIME_STATS = ("count", "mean", "std", "ratio", "zscore", *HABIT_STATS, *LIFETIME_STATS)
OF_EVENT_STATS = ("ratio", "zscore", "wratio", "share")  # computed from the event's own value of the field
Reports = Literal["frauds", "both"]
Approval = Literal["automatic", "person"]
HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS
TOPICS = ("events", "labels", "scores", "alerts", "refused", "progress", "clock", "control", "resent", "shadow")
# Columns of the lake and of its replay that are not fields.
_AT = ("at_effective_ms", "at_kind", "at_partition", "at_offset", "at_seq")
_LABEL = ("label", "labelled_at_ms", "source", "labelled_by", "label_why", "effective_ms")
LABEL_KEYS = ("label", "labelled_at", "source", "by", "why")  # of a label record, beside the ids of its event
RESERVED = frozenset(
    (
        "topic",
        "partition",
        "offset",
        "arrival_ms",
        "event_id",
        "event_time_ms",
        "kind",
        "seq",
        "is_event",
        *_LABEL,
        *_AT,
    )
)


class Field(msgspec.Struct, frozen=True):
    """One field of an event: its type and the bounds that the contract checks."""

    name: str
    type: str
    required: bool = False
    min: float = -1e15
    max: float = 1e15
    max_length: int = 256


class Feature(msgspec.Struct, frozen=True):
    """One feature of an event; `window_ms` None means the entity's whole past.

    `factor` is for `HABIT_STATS`. `last` is for `LAST_STATS`: which of the entity's last events, 1 = the newest.
    """

    name: str
    stat: str
    entity: str | None = None
    field: str | None = None
    window_ms: int | None = None
    factor: float = 3.0
    last: int = 0


class InputColumn(msgspec.Struct, frozen=True):
    """One model input; `models.table.Column` has the same fields in the same order and documents them."""

    name: str
    kind: Literal["numeric", "categorical"]
    of: str | None = None
    label_fed: bool = False
    entity: str | None = None
    stat: str | None = None
    window_ms: int | None = None


class Labels(msgspec.Struct, frozen=True):
    """How labels arrive: they are final `maturity_ms` after the event, and take effect `lag_ms` after their arrival.

    `reports` says what an event without a label is: legitimate once it is mature, because only frauds are reported
    ("frauds"), or unknown, because legitimate events are reported too ("both").

    `column` is the column of the truth (0 or 1) in a folder of past events; live events never have it. Where legitimate
    events are reported too, it may be empty in some rows: nobody knows.

    `sources` are the sources of labels that outrank others, the strongest first; see `strengths`.
    """

    maturity_ms: int
    lag_ms: int
    column: str = "label"
    reports: Reports = "frauds"
    sources: tuple[str, ...] = ()

    @property
    def strengths(self) -> dict[str, int]:
        """Rank of each source, more for a stronger one; a source that is not listed has 0.

        Of the labels of an event the one of the strongest source holds; among equals the latest in the one order.

        >>> Labels(0, 0, sources=("chargeback", "analyst")).strengths
        {'chargeback': 2, 'analyst': 1}
        """
        return {source: len(self.sources) - place for place, source in enumerate(self.sources)}

    @property
    def sent(self) -> tuple[int, ...]:
        """The values of the truth that past events send as labels."""
        return (0, 1) if self.reports == "both" else (1,)


class LivePeriod(msgspec.Struct, frozen=True):
    """The part of a folder of past events that a demo replays live: [live_from_ms, live_until_ms), event time."""

    live_from_ms: int
    live_until_ms: int


class ReportFields(msgspec.Struct, frozen=True):
    """What the report of a training shows: figures for each value of the `segments`, and money by the field `value`."""

    segments: tuple[str, ...] = ()
    value: str | None = None


class StormRules(msgspec.Struct, frozen=True):
    """How many alerts a burst may publish; None is no limit.

    Within `within_ms` (arrival clock) of its first alert, the further alerts of a key are a group: they are counted in
    updates. Beyond `per_day` full alerts a day, further ones are listed as overflow.
    """

    within_ms: int | None = None
    per_day: int | None = None

    def per_partition(self, n_partitions: int) -> int | None:
        """The daily cap of each partition: its equal share, rounded up, whatever the others have used.

        >>> StormRules(per_day=200).per_partition(3)
        67
        """
        return None if self.per_day is None else -(-self.per_day // n_partitions)


class Promotion(msgspec.Struct, frozen=True):
    """The limits of the gate, and who decides after it ("automatic" or "person").

    Args:
        min_frauds: known frauds needed for a judgement with labels.
        max_loss: allowed loss of average precision, and of precision at the budget.
        max_alerts: allowed alerts, as a multiple of the budget.
        max_bias: expected frauds for each known one, or the inverse of it.
        max_drift: stability index of the scores.
        max_one_field: average precision of a model of one field, if the champion's is lower.
        min_reasons: share of the alerts whose reasons explain them.
        max_time: of scoring, as a multiple of the champion's.
        shadow_events: live events that the candidate must have scored in shadow; 0 = none.
    """

    approval: Approval = "automatic"
    min_frauds: int = 30
    max_loss: float = 0.02
    max_alerts: float = 1.5
    max_bias: float = 3.0
    max_drift: float = 1.0
    max_one_field: float = 0.6
    min_reasons: float = 0.5
    max_time: float = 4.0
    shadow_events: int = 0


class Stream(msgspec.Struct, frozen=True):
    """A kind of event, as described by its stream file.

    Example:
        >>> from pipelines.contracts.stream_file import parse
        >>> stream = parse('''
        ... [stream]
        ... name = "logins"
        ... event_id = "id"
        ... event_time = "at"
        ... entities = ["user"]
        ... [fields]
        ... id = { type = "text" }
        ... at = { type = "time" }
        ... user = { type = "text" }
        ... bytes = { type = "number", min = 0 }
        ... [[features]]
        ... entity = "user"
        ... field = "bytes"
        ... windows = ["1h", "all"]
        ... stats = ["mean"]
        ... ''')
        >>> stream.numeric_columns
        ('bytes', 'hour', 'weekday', 'user.bytes.mean.1h', 'user.bytes.mean.all')
    """

    name: str
    topics: str
    event_id: str
    event_time: str
    entities: tuple[str, ...]
    fields: tuple[Field, ...]
    features: tuple[Feature, ...]
    labels: Labels | None
    budget: Mapping[str, Any]
    future_tolerance_ms: int
    duplicate_memory_ms: int
    duplicate_memory_ids: int
    lifetime_memory_ms: int
    max_message_bytes: int
    packed_scores: bool = False
    storms: StormRules = StormRules()
    review_share: float = 0.0  # of the events, drawn at random for review
    delayed_after_ms: int = 60_000  # lag above which scores are late
    promotion: Promotion = Promotion()
    report: ReportFields = ReportFields()
    replay: LivePeriod | None = None

    def field(self, name: str) -> Field:
        """The field named `name`; KeyError if there is none."""
        for field in self.fields:
            if field.name == name:
                return field
        raise KeyError(name)

    def topic(self, kind: str) -> str:
        """Name of one of the stream's topics, e.g. `payments.events`."""
        if kind not in TOPICS:
            raise KeyError(kind)
        return f"{self.topics}.{kind}"

    @property
    def inputs(self) -> tuple[str, ...]:
        """Kinds of the input topics: events, and labels if the stream has any."""
        return ("events", "labels") if self.labels else ("events",)

    @property
    def key(self) -> str:
        """The entity whose id is the Kafka key."""
        return self.entities[0]

    @property
    def folds_by_partition(self) -> bool:
        """Whether every window is about the key: then each partition has an order and a state of its own."""
        return all(feature.entity == self.key for feature in self.features)

    @property
    def numbers(self) -> tuple[str, ...]:
        """Numeric fields of the event itself."""
        return tuple(f.name for f in self.fields if f.type in ("int", "number") and f.name not in self._ids)

    @property
    def categories(self) -> tuple[str, ...]:
        """Categorical fields; also the categorical columns."""
        return tuple(f.name for f in self.fields if f.type == "category")

    @property
    def hashed(self) -> tuple[str, ...]:
        """Fields that `distinct` and `share` can count: categories, then entities."""
        return (*self.categories, *self.entities)

    @property
    def numeric_columns(self) -> tuple[str, ...]:
        """Names of the numeric features, in the order of the feature row."""
        return (*self.numbers, "hour", "weekday", *(f.name for f in self.features))

    @property
    def columns(self) -> tuple[InputColumn, ...]:
        """Every model input: numeric ones, then categorical ones."""
        own = [InputColumn(name, "numeric", name) for name in self.numbers]
        clock = [InputColumn(name, "numeric", stat=name) for name in ("hour", "weekday")]
        windows = [
            InputColumn(
                f.name,
                "numeric",
                f.field if f.stat in OF_EVENT_STATS else None,
                f.stat in LABEL_STATS,
                f.entity,
                f.stat,
                f.window_ms,
            )
            for f in self.features
        ]
        return (
            *own,
            *clock,
            *windows,
            *(InputColumn(name, "categorical", name) for name in self.categories),
        )

    @property
    def _ids(self) -> frozenset[str]:
        return frozenset((self.event_id, self.event_time, *self.entities))
