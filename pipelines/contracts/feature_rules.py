"""Rules for window features, and the division of a window into panes (equal parts with one sum each)."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import NamedTuple, Self

from pipelines.contracts.stream import (
    ALL_TIME_STATS,
    DAY_MS,
    HASHED_STATS,
    HOUR_MS,
    LABEL_STATS,
    LAST_STATS,
    LEGIT_STATS,
    LIFETIME_STATS,
    NO_WINDOW_STATS,
    STATS,
    VALUE_STATS,
    Feature,
    Reports,
)


class FeatureFault(NamedTuple):
    """Why a feature cannot be computed.

    Args:
        key: the wrong key of [[features]] in the stream file.
        value: its value; None if it is missing.
        problem: what is wrong with the value, as a predicate.
        fix: what to do.
        known: the valid values, if they can be listed.
    """

    key: str
    value: str | None
    problem: str
    fix: str
    known: Collection[str] = ()

    def __str__(self) -> str:
        said = "is missing" if self.value is None else f"is {self.value!r}, which {self.problem}"
        return f"{self.key} {said}; {self.fix}"


class WindowError(ValueError):
    """A window cannot be divided into panes of whole milliseconds; the message suggests a size that can."""


@dataclass(frozen=True)
class Panes:
    """The division of a window: `count` panes of `width_ms`."""

    count: int
    width_ms: int

    @classmethod
    def of(cls, window_ms: int) -> Self:
        """Divide a window: 12 panes up to 1 h, 24 up to 1 d, 28 up to 7 d, else 30; fewer if these do not divide it.

        Raises:
            WindowError: it can be divided only into fewer than half as many panes.

        Example:
            >>> Panes.of(3_600_000), Panes.of(2 * 86_400_000)
            (Panes(count=12, width_ms=300000), Panes(count=27, width_ms=6400000))
        """
        most = 12 if window_ms <= HOUR_MS else 24 if window_ms <= DAY_MS else 28 if window_ms <= 7 * DAY_MS else 30
        count = next((n for n in range(most, most // 2 - 1, -1) if window_ms % n == 0), 0)
        if window_ms <= 0 or not count:
            near_ms = max(1, round(window_ms / most)) * most
            raise WindowError(f'must be a whole number of milliseconds in each of {most} panes, such as "{near_ms}ms"')
        return cls(count, window_ms // count)


def fault_of(
    feature: Feature,
    *,
    entities: Collection[str],
    numbers: Collection[str],
    hashed: Collection[str],
    reports: Reports | None,
) -> FeatureFault | None:
    """Why `feature` cannot be computed, or None if it can.

    Args:
        feature: the feature; its statistic may be unknown.
        entities: names of the stream's entities.
        numbers: names of the fields that are numbers.
        hashed: names of the fields that `distinct` and `share` can count: categories and entities.
        reports: what the stream's labels report; None if it has no [labels] table.
    """
    stat, field, window_ms = feature.stat, feature.field, feature.window_ms
    takes_value = stat in VALUE_STATS
    if stat not in STATS:
        return FeatureFault("stats", stat, "is not a statistic", f"known names: {', '.join(STATS)}", STATS)
    if feature.entity not in entities:
        fix = f"it must be one of the stream's entities: {', '.join(entities)}"
        return FeatureFault("entity", feature.entity, "is not an entity", fix, entities)
    if stat in LABEL_STATS and reports is None:
        return FeatureFault("stats", stat, "needs labels", "add a [labels] table with maturity")
    if stat in LEGIT_STATS and reports != "both":
        fix = 'set reports = "both" in [labels] if legitimate events are reported too'
        return FeatureFault("stats", stat, "needs reports of legitimate events", fix)
    if takes_value and field not in numbers:
        fix = f"it must be a field of type int or number for {stat}: {_list(numbers)}"
        return FeatureFault("field", field, "is not a number", fix, numbers)
    if stat in HASHED_STATS and (field not in hashed or field == feature.entity):
        others = [name for name in hashed if name != feature.entity]
        fix = f"it must be a category or another entity for {stat}: {_list(others)}"
        return FeatureFault("field", field, "cannot be counted", fix, others)
    if not takes_value and stat not in HASHED_STATS and field is not None:
        return FeatureFault("field", field, "is not used", f"{stat} does not take a field")
    if stat in NO_WINDOW_STATS and window_ms is not None:
        return FeatureFault("windows", f"{window_ms}ms", "is not used", f"{stat} takes no window")
    if stat in LAST_STATS and feature.last < 1:
        return FeatureFault("last", None, "", f"{stat} needs it, as in last = 4")
    if stat in LIFETIME_STATS and window_ms is not None:
        return FeatureFault("windows", f"{window_ms}ms", f"{stat} does not have", 'its only window is "all"')
    if stat not in NO_WINDOW_STATS and window_ms is None and stat not in ALL_TIME_STATS:
        fix = f"it needs a window such as 7d; only {', '.join(ALL_TIME_STATS)} have all"
        return FeatureFault("windows", "all", f"{stat} does not have", fix)
    try:
        if window_ms is not None:
            Panes.of(window_ms)
    except WindowError as error:
        return FeatureFault("windows", f"{window_ms}ms", "cannot be cut evenly", f"it {error}")
    return None


def _list(names: Collection[str]) -> str:
    return ", ".join(names) or "the stream has none"
