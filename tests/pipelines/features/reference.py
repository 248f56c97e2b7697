"""Window features the slow way: for each event again from the whole past; no code shared with the kernel.

Only the order of float additions is held to the kernel's: within a pane in the order of arrival, then the
panes from the oldest to the newest.
"""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from pipelines.contracts.stream import Feature

NAN = float("nan")
HOUR, DAY = 3_600_000, 86_400_000
RATES = ("fraud_rate", "fraud_count", "labelled_count", "smoothed_fraud_rate")


class Item(NamedTuple):
    """An event, or a label where `delta` is a number."""

    clock_ms: int
    time_ms: int
    entities: tuple[int, ...]
    numbers: tuple[float, ...]
    hashed: tuple[int, ...]
    delta: int | None  # change of the number of known frauds
    legit: int = 0  # and of known legitimate events


class Reference:
    """Window features of items given one by one, in the one order."""

    def __init__(
        self,
        features: Sequence[Feature],
        entities: Sequence[str],
        numbers: Sequence[str],
        hashed: Sequence[str],
        maturity_ms: int | None,
        lifetime_ms: int = 400 * DAY,
        reports: str = "frauds",
    ) -> None:
        self.features = features
        self.entities = entities
        self.numbers = numbers
        self.hashed = hashed
        self.maturity_ms = maturity_ms or 0
        self.lifetime_ms = lifetime_ms
        self.both = reports == "both"
        self.past: list[dict[int, list[Item]]] = [{} for _ in entities]  # what windows know of
        self.life: list[dict[int, list[Item]]] = [{} for _ in entities]  # events that all-time features know of
        self.told: list[dict[int, list[Item]]] = [{} for _ in entities]  # labels that label histories know of
        self.late_dropped: dict[str, int] = {}
        self.labels_outside: dict[str, int] = {}

    def fold(self, item: Item) -> list[float] | None:
        """The features of an event, before it is added; None for a label."""
        row = [NAN] * len(self.features)
        for column, entity in enumerate(self.entities):
            key = item.entities[column]
            wanted = [f for f in self.features if f.entity == entity]
            if key == 0 or not wanted:
                continue
            past = self.past[column].setdefault(key, [])
            life = self.life[column].setdefault(key, [])
            told = self.told[column].setdefault(key, [])
            idle_ms = self.idle_ms(wanted)
            if life and item.clock_ms - life[-1].clock_ms > idle_ms:
                past.clear()
            if life and item.clock_ms - life[-1].clock_ms > max(idle_ms, self.lifetime_ms):
                life.clear()
                told.clear()
            for window_ms in {f.window_ms for f in wanted if f.stat in RATES}:
                self.count_outside(entity, window_ms, past, item)
            if item.delta is not None and life:
                told.append(item)
            if item.delta is None:
                for window_ms, fed in {(f.window_ms, f.stat in RATES) for f in wanted if f.window_ms is not None}:
                    self.count_late(entity, window_ms, fed, past, item)
                for place, feature in enumerate(self.features):
                    if feature.entity == entity:
                        value = self.value(feature, past, life, told, item)
                        row[place] = value if math.isfinite(value) else NAN
            if item.delta is None or past:
                past.append(item)
            if item.delta is None:
                life.append(item)
        return row if item.delta is None else None

    def idle_ms(self, features: Iterable[Feature]) -> int:
        spans = [0]
        for f in features:
            if f.window_ms is not None:
                _, width = panes(f.window_ms)
                spans.append(f.window_ms + (self.maturity_ms + 2 * width if f.stat in RATES else width))
        return max(spans) or self.lifetime_ms

    def value(self, f: Feature, past: list[Item], life: list[Item], told: list[Item], item: Item) -> float:
        if f.stat == "since_last":
            times = [i.time_ms for i in life]
            return max(0, item.time_ms - max(times)) / 1000.0 if times else NAN
        if f.stat in ("last_age", "last_hour", "last_value"):
            return self.last(f, life, item)
        if f.stat in RATES:
            return self.fraud(f, past, item)
        if f.stat in ("since_fraud", "since_legit", "fraud_run", "fraud_run_age"):
            found = history(told)[f.stat]
            if f.stat == "fraud_run" or found is None:
                return NAN if found is None else float(found)
            return max(0, item.time_ms - found) / 1000.0
        if f.stat in ("share", "hour_share"):
            return self.share(f, life, item)
        value = measured(item.numbers[self.numbers.index(f.field)]) if f.field in self.numbers else None
        if f.window_ms is None:
            return self.lifetime(f, life, value)
        count, width = panes(f.window_ms)
        kept, newest = kept_panes(f.window_ms, count + 2, [*past, item])
        last = item.time_ms // width
        # The item itself moves the newest pane, but is not yet in it.
        kept = {pane: [i for i in items if i is not item] for pane, items in kept.items()}
        covered = [kept[p] for p in sorted(kept) if last - count <= p <= last and p > newest - count - 2]
        if f.stat == "count":
            return float(sum(len(pane) for pane in covered))
        if f.stat == "distinct":
            place = self.hashed.index(f.field or "")
            bits = {i.hashed[place] % 256 for pane in covered for i in pane if i.hashed[place]}
            return 256 * math.log(256 / max(1, 256 - len(bits)))
        place = self.numbers.index(f.field or "")
        if f.stat in ("above", "wmean", "wratio"):
            habit = self.habit(f, life)
            if f.stat == "above":
                return float(sum(habit[id(i)][1] for pane in covered for i in pane if id(i) in habit))
            values = [[habit[id(i)][0] for i in pane if id(i) in habit] for pane in covered]
            return statistic(f.stat.removeprefix("w"), [pane for pane in values if pane], value)
        values = [[v for i in pane if (v := measured(i.numbers[place])) is not None] for pane in covered]
        return statistic(f.stat, [pane for pane in values if pane], value)

    def lifetime(self, f: Feature, events: list[Item], value: float | None) -> float:
        if f.stat == "count":
            return float(len(events))
        if f.stat in ("above", "wmean", "wratio"):
            habit = list(self.habit(f, events).values())
            if f.stat == "above":
                return float(sum(is_above for _, is_above in habit))
            mean = running_mean([cut for cut, _ in habit]) if habit else NAN
            return compared(f.stat.removeprefix("w"), value, len(habit), mean, 0.0)
        n, mean, moment = 0, 0.0, 0.0
        for i in events:
            x = measured(i.numbers[self.numbers.index(f.field or "")])
            if x is not None:
                n += 1
                step = x - mean
                mean += step / n
                moment += step * (x - mean)
        if n == 0:
            return NAN
        return compared(f.stat, value, n, mean, moment / n)

    def habit(self, f: Feature, events: list[Item]) -> dict[int, tuple[float, bool]]:
        """Of each event with a value, by identity: the value as it entered the habit, and whether it was above."""
        found: dict[int, tuple[float, bool]] = {}
        for i in events:
            x = measured(i.numbers[self.numbers.index(f.field or "")])
            if x is not None:
                mean = running_mean([cut for cut, _ in found.values()])
                limit = f.factor * mean if len(found) >= 3 and mean > 0 else math.inf
                found[id(i)] = (min(x, limit), x > limit)
        return found

    def share(self, f: Feature, events: list[Item], item: Item) -> float:
        if f.stat == "hour_share":
            hours, hour = tally([i.time_ms // HOUR % 24 for i in events], 24), item.time_ms // HOUR % 24
            return (hours[hour] + hours[hour - 1] + hours[(hour + 1) % 24] + 1) / (sum(hours) + 8)
        place = self.hashed.index(f.field or "")
        if not item.hashed[place]:
            return NAN
        cells = tally([i.hashed[place] % 64 for i in events if i.hashed[place]], 64)
        return (cells[item.hashed[place] % 64] + 0.5) / (sum(cells) + 1)

    def last(self, f: Feature, events: list[Item], item: Item) -> float:
        if len(events) < f.last:
            return NAN
        of = events[-f.last]
        if f.stat == "last_value":
            value = measured(of.numbers[self.numbers.index(f.field or "")])
            return NAN if value is None else value
        return of.time_ms % DAY / HOUR if f.stat == "last_hour" else max(0, item.time_ms - of.time_ms) / 1000

    def fraud(self, f: Feature, past: list[Item], item: Item) -> float:
        assert f.window_ms is not None
        count, width = panes(f.window_ms)
        ring = self.label_ring(f.window_ms)
        kept, newest = kept_panes(f.window_ms, ring, [*past, item])
        until = (item.time_ms - self.maturity_ms) // width
        end = item.time_ms // width + 1 if self.both else until
        covered = [p for p in range(until - count, end) if p > newest - ring]
        reported = [self.reported(f.window_ms, past, pane) for pane in covered]
        frauds = sum(frauds for frauds, _ in reported)
        events = sum(labelled for _, labelled in reported)
        if not self.both:
            events = sum(sum(i is not item for i in kept.get(pane, [])) for pane in covered)
        if f.stat in ("fraud_count", "labelled_count"):
            return float(frauds if f.stat == "fraud_count" else events)
        if f.stat == "smoothed_fraud_rate":
            return (frauds + 0.1) / (events + 10)
        return frauds / events if events else NAN if self.both else 0.0

    def label_ring(self, window_ms: int) -> int:
        count, width = panes(window_ms)
        return count + math.ceil(self.maturity_ms / width) + 2

    def reported(self, window_ms: int, past: list[Item], pane: int) -> tuple[int, int]:
        """Frauds and events reported in a pane: never below none, and only while the pane was held."""
        frauds = labelled = 0
        for place, i in enumerate(past):
            if i.delta is None or i.time_ms // panes(window_ms)[1] != pane:
                continue
            if self.is_held(window_ms, past[:place], pane):
                frauds = max(0, frauds + i.delta)
                labelled = max(0, labelled + i.delta + i.legit)
        return frauds, labelled

    def is_held(self, window_ms: int, past: list[Item], pane: int) -> bool:
        if not past:
            return False
        _, newest = kept_panes(window_ms, 1, past)
        return newest - self.label_ring(window_ms) < pane <= newest

    def count_outside(self, entity: str, window_ms: int | None, past: list[Item], item: Item) -> None:
        assert window_ms is not None
        if item.delta or item.legit:
            name = f"{entity}, {window_ms} ms, labels"
            outside = not self.is_held(window_ms, past, item.time_ms // panes(window_ms)[1])
            self.labels_outside[name] = self.labels_outside.get(name, 0) + outside

    def count_late(self, entity: str, window_ms: int, fed: bool, past: list[Item], item: Item) -> None:
        count, width = panes(window_ms)
        name = f"{entity}, {window_ms} ms" + (", labels" if fed else "")
        if fed and self.both:
            return  # not events are counted, but their labels
        ring = self.label_ring(window_ms) if fed else count + 2
        _, newest = kept_panes(window_ms, ring, [*past, item])
        self.late_dropped[name] = self.late_dropped.get(name, 0) + (item.time_ms // width <= newest - ring)


def history(told: list[Item]) -> dict[str, int | None]:
    """What is known of an entity after some labels: newest times, and number and first of the frauds in the run."""
    frauds: list[int] = []  # the newest 8 that are known, rising
    legits: list[int] = []  # the newest 4
    older, first_older = 0, 0  # frauds of the run that are not in the list any more
    for label in told:
        if label.legit < 0 and label.time_ms in legits:
            legits.remove(label.time_ms)
        if label.legit > 0:
            legits = sorted([*legits, label.time_ms])[-4:]
        if label.delta == -1:
            if label.time_ms in frauds:
                frauds.remove(label.time_ms)
            elif older and label.time_ms >= first_older:
                older -= 1
        if label.delta == 1:
            frauds = sorted([*frauds, label.time_ms])
            if len(frauds) > 8:
                pushed = frauds.pop(0)
                if not legits or pushed > legits[-1]:
                    first_older = min(first_older, pushed) if older else pushed
                    older += 1
        if legits and older and first_older <= legits[-1]:
            older = 0
    run = [t for t in frauds if not legits or t > legits[-1]]
    return {
        "since_fraud": frauds[-1] if frauds else None,
        "since_legit": legits[-1] if legits else None,
        "fraud_run": older + len(run),
        "fraud_run_age": first_older if older else run[0] if run else None,
    }


def panes(window_ms: int) -> tuple[int, int]:
    """Number of panes and width of one, in ms."""
    most = 12 if window_ms <= HOUR else 24 if window_ms <= DAY else 28 if window_ms <= 7 * DAY else 30
    count = max(n for n in range(most // 2, most + 1) if window_ms % n == 0)
    return count, window_ms // count


def kept_panes(window_ms: int, ring: int, items: list[Item]) -> tuple[dict[int, list[Item]], int]:
    """Events by pane, without those that were already too old when they came; and the newest pane."""
    width = panes(window_ms)[1]
    kept: dict[int, list[Item]] = {}
    newest: int | None = None
    for i in items:
        if i.delta is None:
            pane = i.time_ms // width
            newest = pane if newest is None else max(newest, pane)
            if pane > newest - ring:
                kept.setdefault(pane, []).append(i)
    assert newest is not None
    return kept, newest


def measured(value: float) -> float | None:
    """The value as it counts: NaN and beyond 1e100 is missing, -0.0 is 0.0."""
    return None if math.isnan(value) or abs(value) > 1e100 else 0.0 if value == 0 else value


def tally(cells: list[int], n_cells: int) -> list[int]:
    """How many events fall into each cell; all are halved before one exceeds 16 bits."""
    counts = [0] * n_cells
    for cell in cells:
        if counts[cell] == 65_535:
            counts = [count // 2 for count in counts]
        counts[cell] += 1
    return counts


def running_mean(values: list[float]) -> float:
    mean = 0.0
    for n, x in enumerate(values, start=1):
        mean += (x - mean) / n
    return mean


def statistic(stat: str, values: list[list[float]], value: float | None) -> float:
    """A statistic of the values of some panes, none of them empty."""
    if stat == "sum":
        return total(values)
    if not values:
        return NAN
    flat = [x for pane in values for x in pane]
    if stat in ("min", "max"):
        return min(flat) if stat == "min" else max(flat)
    mean = total(values) / len(flat)
    square = total([[x * x for x in pane] for pane in values]) / len(flat)
    variance = square - mean * mean
    return compared(stat, value, len(flat), mean, variance if variance > 1e-12 * square else 0.0)


def total(values: list[list[float]]) -> float:
    whole = 0.0
    for pane in values:
        part = 0.0
        for x in pane:
            part += x
        whole += part
    return whole


def compared(stat: str, value: float | None, n: int, mean: float, variance: float) -> float:
    if stat == "mean":
        return mean
    if stat == "ratio":
        return value / mean if value is not None and mean != 0 else NAN
    if n < 2:
        return NAN
    if stat == "std":
        return math.sqrt(variance)
    return (value - mean) / math.sqrt(variance) if value is not None and variance > 0 else NAN
