"""The label-free score of an event with a history: evidence of its fields and of its entity's recent activity."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from models.masking import MaskedField
from models.table import Column

RECENT_MS = 7 * 86_400_000  # windows up to this width describe recent activity
SHRINK = 10.0  # earlier events of an entity that weigh as much as the mean of all entities
BODY = (0.90, 0.98)  # quantiles that define the tail of normal values; up to 2 % of anomalies do not affect it
FAR = 0.9995  # quantile at which the excess over that tail is measured
FULL_EXCESS = 4.0  # nats of excess that give a measure its full weight
TAILS = (0.3, 0.1, 0.03, 0.01, 0.003, 0.001)  # tail shares at which tail dependence is measured
FEWEST = 10  # rows in the far tail that a measurement of dependence needs
DEPENDENT = 0.3  # smallest support in nats that is kept
N_KNOTS = 64
FOREVER = 2**62
MOST_BEYOND = 100.0  # nats
NORM = 3
SLICES, DRIFT = 4, 2.0  # no quarter of the training rows may have twice its share of a measure's largest values
CONTEXT = 0.5  # share of a measure's variance between entities above which it describes the entity, not the event
HINT = 0.07  # weight of everything that is odd
BESIDE = 0.5  # largest support by an entity's last events, as a share of what the event itself shows
SIDES = {"above": 1.0, "below": -1.0}


class Measure(NamedTuple):
    """One number per event that is large if the event is odd.

    Args:
        name: for messages.
        group: measures of one group are alternatives; the strongest counts.
        kind: how it is computed from the columns (see `Evidence`).
        column: the numeric column, or the index of the field for a surprise.
        other, events: further columns, -1 = none.
        sign: 1 = large values are odd, -1 = small ones are.
        share: width of the window over that of `other`.
        lasts: columns of the entity's last events.
    """

    name: str
    group: str
    kind: str
    column: int
    other: int = -1
    events: int = -1
    sign: float = 1.0
    share: float = 1.0
    lasts: tuple[int, ...] = ()


def measures(
    columns: Sequence[Column], fields: Sequence[MaskedField], predicted: Collection[str]
) -> tuple[Measure, ...]:
    """The measures that the columns allow.

    - ``value``: a number of the event against everyone's, both tails.
    - ``habit``: the same number over the entity's own mean, which is shrunk towards everyone's mean.
    - ``last``: the same number in the second oddest of an entity's last events (statistic last_value), because one odd
      event is chance.
    - ``surprise``: the surprise of a field under the encoder's prediction, if it is better than the field's own
      distribution.
    - ``rare``: an unusual category or hour of this entity (statistics share and hour_share).
    - ``recent``: counts, sums, maxima and distinct values of the entity's last days; ``pace``: the same relative to
      its longest window.

    >>> from models.masking import event_fields
    >>> columns = [Column("amount", "numeric", "amount"), Column("c.count.1d", "numeric", None, False, "c", "count", 1)]
    >>> [m.name for m in measures(columns, event_fields(columns), [])]
    ['amount.high', 'amount.low', 'c.count.1d']
    """
    numeric = [(i, column) for i, column in enumerate(columns) if column.kind == "numeric" and not column.label_fed]
    context = {c.name for _, c in numeric if c.stat is None and c.of == c.name} - {field.name for field in fields}
    found: list[Measure] = []
    for i, column in numeric:
        if column.stat is None and column.of == column.name:
            for name, sign in (("high", 1.0), ("low", -1.0)):
                found.append(Measure(f"{column.name}.{name}", column.name, "value", i, sign=sign))
            found += _habits(column, i, numeric)
            if column.name not in context:
                found += _last_habits(column, i, numeric)
        elif column.stat in ("share", "hour_share"):
            found.append(Measure(column.name, column.of or "hour", "rare", i))
        elif column.stat in ("count", "sum", "max", "distinct", "above") and (column.window_ms or FOREVER) <= RECENT_MS:
            group = f"{column.entity} lately"
            found.append(Measure(column.name, group, "recent", i))
            longest, width_ms = _longest(column, numeric)
            if longest != i and column.stat == "count":
                share = (column.window_ms or 0) / width_ms
                found.append(Measure(f"{column.name}.pace", group, "pace", i, other=longest, share=share))
    found += [
        Measure(f"{field.name}.surprise", field.name, "surprise", j)
        for j, field in enumerate(fields)
        if field.name in predicted
    ]
    return tuple(m for m in found if m.group not in context)


def _habits(field: Column, i: int, numeric: Sequence[tuple[int, Column]]) -> list[Measure]:
    """The number over the mean, over the longest window, of the first entity that has one."""
    for entity in dict.fromkeys(c.entity for _, c in numeric if c.entity):
        if usual := _usual(field, entity, numeric):
            return [Measure(f"{field.name}.{n}", field.name, "habit", i, *usual, s) for n, s in SIDES.items()]
    return []


def _last_habits(field: Column, i: int, numeric: Sequence[tuple[int, Column]]) -> list[Measure]:
    """The number in the last events of each entity over the entity's mean, or as it is if there is no mean."""
    found = []
    for entity in dict.fromkeys(c.entity for _, c in numeric if c.stat == "last_value"):
        stem = f"{entity}.{field.name}.last_value."
        lasts = tuple(j for j, c in numeric if c.stat == "last_value" and c.name.startswith(stem))
        usual = _usual(field, entity, numeric) or (-1, -1)
        if lasts:
            found.append(Measure(stem[:-1], f"{entity} last", "last", i, *usual, lasts=lasts))
    return found


def _usual(field: Column, entity: str | None, numeric: Sequence[tuple[int, Column]]) -> tuple[int, int] | None:
    """The columns of an entity's own mean of a field, and of its number of events, over their longest windows."""
    mine = [(j, c) for j, c in numeric if c.entity == entity]
    means = [(c.window_ms or FOREVER, c.stat == "wmean", j) for j, c in mine if _is_mean(c, field)]
    counts = [(c.window_ms or FOREVER, j) for j, c in mine if c.stat == "count"]
    return (max(means)[-1], max(counts)[-1]) if means and counts else None


def _is_mean(column: Column, field: Column) -> bool:
    """Whether a window column is a mean of a field; its name is `entity.field.stat.window`."""
    return column.stat in ("mean", "wmean") and column.name.startswith(f"{column.entity}.{field.name}.")


def _longest(column: Column, numeric: Sequence[tuple[int, Column]]) -> tuple[int, int]:
    """The column with the same statistic over the longest limited window, and the width of that, ms."""
    stem = column.name.rpartition(".")[0]
    same = [(c.window_ms or 0, j) for j, c in numeric if c.name.rpartition(".")[0] == stem and c.stat == column.stat]
    width_ms, longest = max(same)
    return longest, width_ms


@dataclass(frozen=True)
class Evidence:
    """A label-free score: log-odds, up to a constant, that an event is an anomaly.

    Each measure gives ``-log`` of the share of training events that are at least as odd. How much of it counts is
    decided without labels:

    - *Excess*: the tail of normal values is extrapolated from the body of the distribution (Weibull through the 90 %
      and 98 % quantiles). A measure whose largest values are much more frequent than that has two kinds of events in
      it; its weight grows with the excess. Noise has none (the empirical null of Efron, 2004). The surprise of a
      category must also exceed what the prediction itself says: a surprise of s nats has a probability of about
      ``exp(-s)``. Otherwise its weight would grow with training, as predictions become sharper.
    - *Tail dependence*: two measures of different groups that are extreme together, more than their dependence in the
      body explains (the lift at 1 % over the square of the lift at 10 %, see Ledford and Tawn, 1996), support each
      other. The support is the log of that ratio, measured at several tail shares: a likelihood ratio.

    A measure that drifts during the training rows counts nothing. Nor does recent activity that hardly varies within an
    entity: the number of events of a busy customer is context. An entity's last events are no evidence of their own,
    as each has had its score: they have no weight, and support at most `BESIDE` of the nats of the event itself.

    A measure's evidence is its weighted nats plus the support of the other groups. The measures of a group are
    alternatives: their odds add up. Groups together count as the norm of order `NORM`: the strongest one decides, and
    an event that is odd in two ways is before one that is odd in one. The nats of all groups, whatever their weight,
    count a little: among events of similar evidence, the one that is odd in more ways comes first.

    Args:
        measures: what is measured.
        center: mean of the column over training rows, for shrinkage, **shape (k,)**.
        knots, nats: -log tail share as a function of a measure, ascending, **shape (k, n_knots)**.
        normal: median, 98 % quantile above it and power of the tail of normal values, **shape (k, 3)**. Values beyond
            the training range count by this tail. A power of 0 is no tail.
        weight: weight of each measure, in [0, 1], **shape (k,)**.
        support: support of measure j by measure i at the knots ``-log(TAILS)``, in nats, **shape (k, k, n_tails)**.
        cost: subtracted from the support, so that it has no effect on average, **shape (k, k)**.
        hints: measures that count a little whatever their weight: they do not drift, and vary within entities, bool,
            **shape (k,)**.
    """

    measures: tuple[Measure, ...]
    center: NDArray[np.float64]
    knots: NDArray[np.float64]
    nats: NDArray[np.float64]
    normal: NDArray[np.float64]
    weight: NDArray[np.float64]
    support: NDArray[np.float64]
    cost: NDArray[np.float64]
    hints: NDArray[np.bool_]

    @classmethod
    def fit(
        cls,
        columns: Sequence[Column],
        fields: Sequence[MaskedField],
        numeric: NDArray[np.float64],
        surprises: NDArray[np.float64],
        predicted: Collection[str],
        entity: NDArray[np.uint64] | None = None,
    ) -> Self:
        """Fit on unlabelled rows.

        Args:
            columns: input columns.
            fields: predicted fields, in the order of the surprises.
            numeric: raw numeric columns, **shape (n, d_num)**, NaN = missing.
            surprises: in nats, **shape (n, n_fields)**, NaN = missing.
            predicted: names of the fields that the encoder predicts better than their own distribution does.
            entity: entity of each row, **shape (n,)**; None = rows without entities.
        """
        parts = measures(columns, fields, predicted)
        center = np.array([_mean(numeric[:, m.column]) if m.kind in ("habit", "last") else 0.0 for m in parts])
        raw = _raw(parts, center, numeric, surprises)
        knots, nats = (np.array(a) for a in zip(*map(_tail, raw), strict=True))
        normal = np.array([_normal(x) for x in raw])
        far = np.array([np.quantile(seen, FAR) if (seen := x[np.isfinite(x)]).size else 0.0 for x in raw])
        expected = _normal_nats(far, normal)
        coded = [m.kind == "surprise" and columns[fields[m.column].target].kind == "categorical" for m in parts]
        expected = np.where(coded, np.minimum(expected, far), expected)
        weight = np.clip((expected + np.log1p(-FAR)) / FULL_EXCESS, 0.0, 1.0)
        none = np.zeros(len(parts), np.bool_)
        fitted = cls(parts, center, knots, nats, normal, weight, np.zeros((0, 0, 0)), np.zeros((0, 0)), none)
        of_rows = fitted._nats(raw, ~none)
        steady = np.array([_is_steady(one) for one in of_rows], np.bool_)
        varies = ~none if entity is None else _between(of_rows, entity) < CONTEXT
        counts = steady & (varies | np.array([m.kind not in ("recent", "last") for m in parts], np.bool_))
        own = counts & np.array([m.kind != "last" for m in parts], np.bool_)
        weight *= own
        normal[~own, 2] = 0.0
        support, cost = _supports(parts, of_rows)
        for table in (support, cost):
            table[~own], table[:, ~counts] = 0.0, 0.0
        return cls(parts, center, knots, nats, normal, weight, support, cost, own & varies)

    @property
    def surprised(self) -> tuple[int, ...]:
        """The fields whose surprises are measures."""
        return tuple(m.column for m in self.measures if m.kind == "surprise")

    def combine(self, numeric: NDArray[np.float64], surprises: NDArray[np.float64]) -> NDArray[np.float64]:
        """One value per row in nats, high = anomalous, **shape (n,)**. A missing value is no evidence."""
        raw = _raw(self.measures, self.center, numeric, surprises)
        nats = self._nats(raw, self._counts | self.hints)
        total = self._supported(raw, nats)
        joint, hint = np.zeros(len(numeric)), np.zeros(len(numeric))
        for mine in self._groups:
            strongest = np.logaddexp.reduce(total[mine & self._counts], axis=0)
            joint += np.maximum(strongest, 0.0) ** NORM
            hint += np.max(nats[mine & self.hints], axis=0, initial=0.0)
        return np.asarray(joint ** (1 / NORM) + HINT * hint)

    @cached_property
    def _groups(self) -> list[NDArray[np.bool_]]:
        """The measures of each group, each **shape (k,)**."""
        names = [m.group for m in self.measures]
        return [np.array([name == one for name in names], np.bool_) for one in dict.fromkeys(names)]

    def _supported(self, raw: Sequence[NDArray[np.float64]], nats: NDArray[np.float64]) -> NDArray[np.float64]:
        """The evidence of each measure with the support of the other groups, **shape (k, n)**."""
        total = self.weight[:, None] * nats
        at = -np.log(np.array(TAILS))
        for j, x in enumerate(raw):
            if len(far := np.flatnonzero(x > self.knots[j, -1])):
                total[j, far] += self._beyond(j, x[far])
            for supporters in self._supporters[j]:
                ones = [np.interp(nats[i], at, self.support[j, i]) - self.cost[j, i] for i in supporters]
                strongest = np.max(ones, axis=0)
                if self.measures[supporters[0]].kind == "last":
                    strongest = np.minimum(strongest, BESIDE * nats[j])
                total[j] += strongest
        return total

    @cached_property
    def _counts(self) -> NDArray[np.bool_]:
        """Measures that can change a score within the range of the training rows, **shape (k,)**."""
        return (self.weight > 0) | (self.support[:, :, -1] > 0).any(axis=0)

    @cached_property
    def _supporters(self) -> list[list[list[int]]]:
        """For each measure and each group that supports it, the measures that do."""
        found: list[list[list[int]]] = []
        for row in self.support[:, :, -1] > 0:
            by_group: dict[str, list[int]] = {}
            for i in np.flatnonzero(row):
                by_group.setdefault(self.measures[i].group, []).append(int(i))
            found.append(list(by_group.values()))
        return found

    def _nats(self, raw: Sequence[NDArray[np.float64]], wanted: NDArray[np.bool_]) -> NDArray[np.float64]:
        found = np.zeros((len(raw), len(raw[0]) if raw else 0))
        for j in np.flatnonzero(wanted):
            x = raw[int(j)]
            found[j] = np.where(np.isfinite(x), np.interp(x, self.knots[j], self.nats[j]), 0.0)
        return found

    def _beyond(self, j: int, x: NDArray[np.float64]) -> NDArray[np.float64]:
        """Nats of values beyond those of the training rows, under the tail of normal values."""
        normal = self.normal[j : j + 1]
        last = _normal_nats(self.knots[j, -1:], normal)
        return np.minimum(_normal_nats(x[None], normal)[0] - last, MOST_BEYOND)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """The arrays, for safetensors."""
        names = ("center", "knots", "nats", "normal", "weight", "support", "cost", "hints")
        return {name: getattr(self, name) for name in names}

    def config(self) -> list[dict[str, Any]]:
        """The measures, for JSON."""
        return [m._asdict() for m in self.measures]

    @classmethod
    def of_parts(cls, config: Sequence[Mapping[str, Any]], arrays: Mapping[str, NDArray[Any]]) -> Self:
        """Create it from the results of `config` and `arrays`."""
        return cls(tuple(Measure(**{**m, "lasts": tuple(m.get("lasts", ()))}) for m in config), **arrays)


def _mean(x: NDArray[np.float64]) -> float:
    seen = x[np.isfinite(x)]
    return float(seen.mean()) if seen.size else 0.0


def _raw(
    parts: Sequence[Measure],
    center: NDArray[np.float64],
    numeric: NDArray[np.float64],
    surprises: NDArray[np.float64],
) -> list[NDArray[np.float64]]:
    """The measures of rows, each **shape (n,)**, NaN = missing."""
    found = []
    for m, mean in zip(parts, center, strict=True):
        if m.kind == "surprise":
            x = surprises[:, m.column]
        elif m.kind == "habit":
            x = numeric[:, m.column] / _shrunk(m, mean, numeric)
        elif m.kind == "last":
            lasts = np.sort(np.nan_to_num(numeric[:, m.lasts], nan=-np.inf), axis=1)[:, -min(2, len(m.lasts))]
            x = np.where(np.isfinite(lasts), lasts, np.nan) / (1.0 if m.other < 0 else _shrunk(m, mean, numeric))
        elif m.kind == "rare":
            x = -np.log(np.maximum(numeric[:, m.column], 1e-9))
        elif m.kind == "pace":
            x = (numeric[:, m.column] + 1.0) / (numeric[:, m.other] * m.share + 1.0)
        else:
            x = numeric[:, m.column]
        found.append(m.sign * x)
    return found


def _shrunk(m: Measure, mean: float, numeric: NDArray[np.float64]) -> NDArray[np.float64]:
    """The entity's own mean of a number, shrunk towards everyone's, **shape (n,)**."""
    own = numeric[:, m.other]
    n = np.where(np.isfinite(own), np.nan_to_num(numeric[:, m.events]), 0.0)  # without an own mean, everyone's
    usual = (n * np.nan_to_num(own) + SHRINK * mean) / (n + SHRINK)
    return np.where(np.abs(usual) > 1e-9, usual, np.nan)


def _tail(x: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Knots of ``-log`` of the share of rows at or above a value; ties count half."""
    seen = np.sort(x[np.isfinite(x)])
    if seen.size == 0:
        return np.arange(N_KNOTS, dtype=np.float64), np.zeros(N_KNOTS)
    shares = np.concatenate([np.linspace(1, 0.1, 19)[:-1], np.geomspace(0.1, 1 / seen.size, N_KNOTS - 18)])
    where = np.clip(np.ceil((1 - shares) * seen.size).astype(np.int64), 0, seen.size - 1)
    values = np.unique(seen[where])
    low, high = (np.searchsorted(seen, values, side) for side in ("left", "right"))
    nats = -np.log((seen.size - (low + high) / 2 + 0.5) / (seen.size + 1))
    pad = N_KNOTS - len(values)
    return np.pad(values, (0, pad), mode="edge"), np.pad(nats, (0, pad), mode="edge")


def _normal(x: NDArray[np.float64]) -> tuple[float, float, float]:
    """Median, 98 % quantile above it and power of a Weibull tail through two quantiles of the body."""
    seen = x[np.isfinite(x)]
    if seen.size == 0:
        return 0.0, 1.0, 0.0
    median = float(np.median(seen))
    above = float((seen > median).mean())
    if above < 2 * (1 - BODY[1]):  # nearly constant: it has no body
        return median, 1.0, 0.0
    first, second = BODY if above > 1.2 * (1 - BODY[0]) else (1 - 0.7 * above, 1 - 0.2 * above)
    low, high = (float(q) for q in np.quantile(seen - median, [first, second]))
    if low <= 0:
        return median, 1.0, 0.0
    power = float(np.log(np.log1p(-second) / np.log1p(-first)) / np.log(max(high / low, 1.05)))
    point = high * (np.log1p(-BODY[1]) / np.log1p(-second)) ** (1 / power)  # where the tail reaches 2 %
    return median, float(point), min(power, 2.0)


def _normal_nats(x: NDArray[np.float64], normal: NDArray[np.float64]) -> NDArray[np.float64]:
    """``-log`` of the normal tail; x has the shape (k,) or (k, n)."""
    median, point, power = (normal[:, i].reshape(-1, *[1] * (x.ndim - 1)) for i in range(3))
    nats = -np.log1p(-BODY[1]) * (np.maximum(x - median, 0.0) / point) ** power
    return np.where(power > 0, nats, 0.0)


def _is_steady(nats: NDArray[np.float64]) -> bool:
    """Whether no quarter of the rows, which are in time order, has far more than its share of the largest values.

    A measure that drifts, such as the surprise of a category whose values change every month, will be large for all
    events one day.
    """
    if len(nats) < SLICES * 1000:
        return True
    large = nats > np.quantile(nats, 0.98)
    return all(part.mean() <= DRIFT * large.mean() for part in np.array_split(large, SLICES))


def _between(x: NDArray[np.float64], entity: NDArray[np.uint64]) -> NDArray[np.float64]:
    """Share of the variance of each row of `x` that is between entities (intraclass correlation), **shape (k,)**.

    >>> _between(np.array([[1.0, 1.0, 3.0, 3.0], [1.0, 3.0, 1.0, 3.0]]), np.uint64([7, 7, 9, 9]))
    array([1., 0.])
    """
    _, place, n = np.unique(entity, return_inverse=True, return_counts=True)
    between = [(np.bincount(place, row) / n)[place].var() for row in x]
    return np.asarray(np.array(between) / np.maximum(x.var(axis=1), 1e-12))


def _supports(parts: Sequence[Measure], nats: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Tail dependence of every two measures of different groups; see `Evidence`."""
    k, n = nats.shape
    tails = np.array(TAILS)
    random = np.random.default_rng(0)
    ranks = np.stack([_ranks(row, random) for row in nats]) if k else np.zeros((0, n))
    extreme = ranks[:, None, :] > 1 - tails[None, :, None]  # (k, n_tails, n)
    body, far = TAILS.index(0.1), TAILS.index(0.01)
    support, cost = np.zeros((k, k, len(tails))), np.zeros((k, k))
    between = np.append(tails[:-1] - tails[1:], tails[-1])
    for j in range(k):
        shared = extreme[j, far]
        if shared.sum() < FEWEST:
            continue
        together = extreme[:, :, shared].sum(axis=2)  # (k, n_tails)
        lift_body = (extreme[:, body] & extreme[j, body]).mean(axis=1) / 0.01
        explained = np.maximum(np.log(np.maximum(lift_body, 1e-9)), 0.0)
        for i, other in enumerate(parts):
            if other.group == parts[j].group or (other.kind == parts[j].kind == "surprise"):
                continue  # two surprises read each other's column
            sure = np.maximum(together[i] - np.sqrt(together[i]), 1e-3)
            lift = np.log(sure / (shared.sum() * tails))
            gain = np.maximum(lift - explained[i] * (2 - np.log10(tails)) / 2, 0.0)
            gain[0] = 0.0
            gain = np.maximum.accumulate(gain)
            if gain[-1] > DEPENDENT:
                support[j, i] = gain
                cost[j, i] = np.log1p(-tails[0] + np.sum(between * np.exp(gain)))
    return support, cost


def _ranks(x: NDArray[np.float64], random: np.random.Generator) -> NDArray[np.float64]:
    """Ranks in (0, 1), ties in random order."""
    ranks = np.empty(len(x))
    ranks[np.lexsort((random.random(len(x)), x))] = (np.arange(len(x)) + 0.5) / len(x)
    return ranks
