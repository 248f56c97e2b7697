"""Fields that know the label: copies of it, aggregates of the entity's future, and running numbers."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import beta
from sklearn.metrics import average_precision_score
from sklearn.tree import DecisionTreeClassifier

from models.errors import ModelError
from models.table import Column, PickedRows, Table

MOST_ROWS = 1_000_000  # the newest ones are judged
HOUR_MS = 3_600_000
FALSE = 0.02  # largest share of legitimate events beside the frauds
CAUGHT, SURE = 0.95, 0.9  # smallest share of the frauds in a group or a set of values, and its lower 95 % bound
CAUGHT_BY_ONE, SURE_BY_ONE = 0.9, 0.5  # the same for one value: few strong columns have their frauds in one value
BESIDE = 0.3  # the same among the legitimate events of the keys that have frauds
BESIDE_OTHER = 0.7  # the same for other entities, where an unknown fraud may count as legitimate
FEW = 1_000  # known legitimate events below which unlabelled ones count as legitimate
FEWEST, EXPECTED = 20, 20.0  # entities, and frauds expected among them
EXPLAINED = 0.4  # largest share of the spread of an entity's frauds that a leaked number leaves open
FALLS = 0.9  # share of the changes of a later mean that go away from the event that leaves it

BY_CHANCE = 0.75  # the same with the events in random order: a flag that is nearly always 1 lies above every 0


class Leak(NamedTuple):
    """A field and why it is none to learn from."""

    field: str
    why: str


class Alone(NamedTuple):
    """A field, and the average precision of a model that knows nothing else."""

    field: str
    average_precision: float


class LeakError(ModelError):
    """Fields know what is to be predicted; the message names them."""

    def __init__(self, leaks: list[Leak]) -> None:
        self.leaks = leaks
        found = "\n".join(f"- {leak.field}: {leak.why}" for leak in leaks)
        names = ", ".join(leak.field for leak in leaks)
        super().__init__(
            "A model that learns from these fields fails on new events, as they know what is to be predicted:\n"
            f"{found}\nDelete {names} from [fields] and [[features]] of the stream file, then pretrain and fine-tune "
            "again. A field that is not listed is ignored"
        )


def refuse(
    table: Table,
    *,
    label: NDArray[np.int8],
    known: NDArray[np.bool_],
    entities: Mapping[str, NDArray[np.integer]] | None = None,
) -> None:
    """Raises LeakError if `find` finds a field."""
    if leaks := find(table, label=label, known=known, entities=entities):
        raise LeakError(leaks)


def find(
    table: Table,
    *,
    label: NDArray[np.int8],
    known: NDArray[np.bool_],
    entities: Mapping[str, NDArray[np.integer]] | None = None,
) -> list[Leak]:
    """Fields of the event that know what is to be predicted. Window columns see only the past, so they are not judged.

    - *A copy of the label*: nearly all frauds have one value, or it is missing, or only they have one; or numbers fall
      into two narrow groups; or a set of categories has nearly all frauds; and so have at most `FALSE` of the
      legitimate events, and `BESIDE` of those of the keys that have frauds. Frauds of one entity within an hour
      count as one. It takes 5 such hours for one value and 29 for a group or a set; with fewer, a strong column
      cannot be told from a leak. Wide ranges are not judged: all large amounts may well be frauds.
    - *The entity's future*: (1) the change of a number since the entity's previous event tells the label in the same
      way, as the number of frauds still to come does; (2) entities with the most usual first value have no fraud
      later, where at least `EXPECTED` are expected; (3) a number explains how many frauds each entity has better than
      chance allows; (4) a number moves away from each event that leaves it, as a mean over later events does.
    - *An id*: a number that differs for nearly all events and rises with time; a category that differs for nearly all.

    Not found: the mean of a field over all events of an entity (it never changes, like an attribute such as the
    income), and the sum or number of later events (it falls with each event, like a balance).

    Args:
        table: rows in time order.
        label: 1 = fraud, **shape (n,)**; read only where ``known`` is true.
        known: which labels are known, **shape (n,)**.
        entities: for each kind of entity a number of the entity of each row, **shape (n,)**; by default the key.

    >>> fraud = (np.arange(5000) % 100 == 0).astype(np.int8)
    >>> x = np.stack([fraud + 7.0, np.arange(5000) % 7], axis=1)
    >>> columns = Column("chargeback", "numeric", "chargeback"), Column("amount", "numeric", "amount")
    >>> table = Table(columns, x, np.zeros((5000, 0), np.uint64), np.arange(5000) * HOUR_MS, {})
    >>> [leak.why for leak in find(table, label=fraud, known=np.ones(5000, bool))]
    ['it tells the label: 8 for 100.0% of the frauds and 0.00% of the legitimate events']
    """
    if len(table) > MOST_ROWS:
        first = len(table) - MOST_ROWS
        table, label, known = table.take(slice(first, None)), label[first:], known[first:]
        entities = None if entities is None else {name: codes[first:] for name, codes in entities.items()}
    if entities is None:
        entities = {} if table.entity is None else {"the key": table.entity}
    of = {name: np.unique(codes, return_inverse=True)[1] for name, codes in entities.items()}
    rows = _Rows.of(label, known, list(of.values()), table.time_ms)
    previous = {name: _previous(codes) for name, codes in of.items()}
    fields = list(_fields(table))
    numbers = {column.name: x for column, x in fields if column.kind == "numeric"}
    numbers["the label"] = np.where(known, label, np.nan)
    found: list[Leak] = []
    for column, x in fields:
        why = _running_number(x) if column.kind == "numeric" else _unlike(x)
        why = why or _tells(x, rows, is_number=column.kind == "numeric")
        if not why and column.kind == "numeric":
            for name, codes in of.items():
                others = {other: y for other, y in numbers.items() if other != column.name}
                why = why or _future(x, rows, name, codes, previous[name], others)
        if why:
            found.append(Leak(column.name, why))
    return found


def strongest(table: Table, label: NDArray[np.int8], fields: Collection[str]) -> Alone | None:
    """The field that predicts the label best alone; None without one, or with less than two frauds.

    The rows are cut where half of the frauds are passed, and each part is predicted by a model of the other one: a
    small tree for a number, the share of frauds of each value for a category.

    Args:
        label: 1 = fraud, all of them known, **shape (n,)**.
        fields: names of those to try.

    >>> fraud = (np.arange(2000) % 40 == 0).astype(np.int8)
    >>> x = np.stack([np.arange(2000) % 7, 3.0 * fraud + np.arange(2000) % 3], axis=1)
    >>> columns = Column("amount", "numeric", "amount"), Column("chargeback", "numeric", "chargeback")
    >>> table = Table(columns, x, np.zeros((2000, 0), np.uint64), np.arange(2000), {})
    >>> strongest(table, fraud, ["amount", "chargeback"])
    Alone(field='chargeback', average_precision=1.0)
    """
    frauds = np.flatnonzero(label == 1)
    if len(frauds) < 2:
        return None
    halves = np.split(np.arange(len(label)), [int(frauds[len(frauds) // 2])])
    if not all((label[half] != 1).any() for half in halves):
        return None
    found = list[Alone]()
    for column, x in _fields(table):
        if column.name in fields:
            codes = np.unique(np.nan_to_num(x, nan=-np.inf), return_inverse=True)[1]
            chance, predict = np.empty(len(label)), _of_rank if column.kind == "numeric" else _of_value
            for fitted, judged in (halves, halves[::-1]):
                chance[judged] = predict(codes[fitted], label[fitted] == 1, codes[judged])
            found.append(Alone(column.name, float(average_precision_score(label == 1, chance))))
    return max(found, key=lambda one: one.average_precision, default=None)


def _of_rank(rank: NDArray[np.int64], fraud: NDArray[np.bool_], judged: NDArray[np.int64]) -> NDArray[np.float64]:
    tree = DecisionTreeClassifier(max_leaf_nodes=16, min_samples_leaf=10, random_state=0).fit(rank[:, None], fraud)
    return np.asarray(tree.predict_proba(judged[:, None])[:, 1])


def _of_value(value: NDArray[np.int64], fraud: NDArray[np.bool_], judged: NDArray[np.int64]) -> NDArray[np.float64]:
    n = int(max(value.max(), judged.max())) + 1
    frauds, events = np.bincount(value, fraud, n), np.bincount(value, minlength=n)
    return np.asarray((frauds + fraud.mean()) / (events + 1))[judged]


class _Rows(NamedTuple):
    """Judged rows.

    Args:
        frauds, others: indices of the frauds and of the legitimate events.
        weight: of each fraud; those of one key within an hour weigh as much as one, and so do all of a key that has
            no legitimate events.
        beside: for each kind of entity, which legitimate events are of entities that have frauds.
    """

    frauds: NDArray[np.int64]
    others: NDArray[np.int64]
    weight: NDArray[np.float64]
    beside: list[NDArray[np.bool_]]

    @classmethod
    def of(
        cls,
        label: NDArray[np.int8],
        known: NDArray[np.bool_],
        entities: list[NDArray[np.int64]],
        time_ms: NDArray[np.int64],
    ) -> _Rows:
        frauds, others = np.flatnonzero(known & (label == 1)), np.flatnonzero(known & (label != 1))
        if len(others) < FEW:
            others = np.flatnonzero(~(known & (label == 1)))
        key = entities[0] if entities else np.arange(len(label))
        hour = np.where(np.isin(key[frauds], key[others]), time_ms[frauds] // HOUR_MS, 0)
        hours = np.stack([key[frauds], hour], axis=1)
        _, episode, size = np.unique(hours, axis=0, return_inverse=True, return_counts=True)
        beside = [np.isin(entity[others], entity[frauds]) for entity in entities]
        return cls(frauds, others, 1 / size[episode.reshape(-1)], beside)

    def only(self, there: NDArray[np.bool_]) -> _Rows:
        """The rows of a mask over the table."""
        kept, also = there[self.frauds], there[self.others]
        return _Rows(self.frauds[kept], self.others[also], self.weight[kept], [one[also] for one in self.beside])

    def is_leak(self, caught: NDArray[np.bool_], false: NDArray[np.bool_], share: float, sure: float) -> bool:
        """Whether a rule that catches these frauds and these legitimate events tells the label."""
        n, k = self.weight.sum(), float(self.weight[caught].sum())
        limits = [BESIDE, *[BESIDE_OTHER] * len(self.beside)]
        alike = any(false[one].mean() > most for one, most in zip(self.beside, limits, strict=False) if one.any())
        few = false.mean() <= FALSE and not alike
        return bool(few and k / n >= share and beta.ppf(0.05, k, n - k + 1) >= sure)


def _fields(table: Table) -> Iterator[tuple[Column, NDArray[Any]]]:
    """Fields of the event with their values, **shape (n,)**."""
    for j, column in enumerate(table.columns):
        if column.of == column.name and column.stat is None:
            if column.kind == "categorical":
                yield column, table.category(j - table.d_num)
            else:
                block = table.numeric
                yield column, block.column(j) if isinstance(block, PickedRows) else block[:, j]


def _running_number(x: NDArray[np.float64]) -> str:
    seen = x[np.isfinite(x)]
    if len(seen) < FEW or len(np.unique(seen)) < 0.99 * len(seen) or np.mean(np.diff(seen) > 0) < 0.99:
        return ""
    return "it is a running number: it differs for nearly all events and rises with time"


def _unlike(x: NDArray[np.uint64]) -> str:
    seen = x[x != 0]
    if len(seen) < FEW or len(np.unique(seen)) < 0.9 * len(seen):
        return ""
    return f"it is an id: {len(np.unique(seen)):,} different values in {len(seen):,} events"


def _tells(x: NDArray[Any], rows: _Rows, *, is_number: bool) -> str:
    """Why a column tells the label of its own event, or an empty string."""
    if len(rows.frauds) == 0 or len(rows.others) == 0:
        return ""
    value = np.nan_to_num(x, nan=np.inf) if is_number else x
    missing = np.inf if is_number else 0
    there, legitimate = value[rows.frauds], value[rows.others]
    values, place = np.unique(there, return_inverse=True)
    weight = np.bincount(place, rows.weight)
    top = values[np.argmax(weight)]
    of_one = "missing" if top == missing else f"{top:g}" if is_number else "one value"
    tests = [
        (there == top, legitimate == top, of_one, CAUGHT_BY_ONE, SURE_BY_ONE),
        (there != missing, legitimate != missing, "not missing", CAUGHT_BY_ONE, SURE_BY_ONE),
    ]
    if is_number:
        groups = [v[np.isfinite(v)] for v in (there, legitimate)]
        if all(len(group) for group in groups):
            (low, high), (least, most) = (np.quantile(group, [0.025, 0.975]) for group in groups)
            width, middles = max(high - low, most - least), [np.median(group) for group in groups]
            if abs(middles[0] - middles[1]) > 2 * width:
                around = [(v >= low - width / 2) & (v <= high + width / 2) for v in (there, legitimate)]
                tests.append((around[0], around[1], f"about {middles[0]:g}", CAUGHT, SURE))
    else:
        chosen = _chosen(values, weight, legitimate)
        tests.append(
            (np.isin(there, chosen), np.isin(legitimate, chosen), f"one of {len(chosen)} values", CAUGHT, SURE)
        )
    for caught, false, where, share, sure in tests:
        if rows.is_leak(caught, false, share, sure):
            k = rows.weight[caught].sum() / rows.weight.sum()
            return (
                f"it tells the label: {where} for {k:.1%} of the frauds and {false.mean():.2%} of the legitimate events"
            )
    return ""


def _chosen(values: NDArray[Any], weight: NDArray[Any], legitimate: NDArray[Any]) -> NDArray[Any]:
    """Values with the most frauds for their legitimate events, at most `FALSE` of these. One fraud chooses no value."""
    seen, counts = np.unique(legitimate, return_counts=True)
    at = np.minimum(np.searchsorted(seen, values), len(seen) - 1)
    beside = np.where(seen[at] == values, counts[at], 0)
    order = np.argsort(beside / weight, kind="stable")
    order = order[weight[order] > 1.5]
    return values[order[np.cumsum(beside[order]) <= FALSE * len(legitimate)]]


def _previous(entity: NDArray[np.int64]) -> NDArray[np.int64]:
    """Row of the entity's previous event, -1 = none, **shape (n,)**."""
    order = np.argsort(entity, kind="stable")
    found = np.full(len(entity), -1)
    same = entity[order[1:]] == entity[order[:-1]]
    found[order[1:][same]] = order[:-1][same]
    return found


def _future(
    x: NDArray[np.float64],
    rows: _Rows,
    name: str,
    entity: NDArray[np.int64],
    previous: NDArray[np.int64],
    others: Mapping[str, NDArray[np.float64]],
) -> str:
    """Why a number knows the future of an entity, or an empty string."""
    change = np.where(previous >= 0, x - x[previous], np.nan)
    changed = rows.only(np.isfinite(change))
    if _tells(np.sign(np.where(np.abs(change) > 1e-9, change, 0.0)), changed, is_number=True):
        return f"its change from one event of {name} to the next tells the label: it knows later labels"
    for other, y in others.items():
        if _leaves(x, y, change, previous):
            return f"it moves as the mean of {other} over later events of {name} does: it knows the future"
    n = int(entity.max()) + 1 if len(entity) else 0
    first = np.full(n, -1)
    first[entity[::-1]] = np.arange(len(entity))[::-1]
    has_value = np.nan_to_num(x[first], nan=np.inf)
    frauds = np.bincount(entity[rows.frauds], minlength=n).astype(float)
    events = frauds + np.bincount(entity[rows.others], minlength=n)
    later = frauds - np.isin(first, rows.frauds)
    if _never(has_value, later, events):
        return f"no {name} with the first value {_usual(has_value):g} has a fraud later: it knows later labels"
    some = (frauds > 0) & np.isfinite(has_value)
    for value in (has_value[some], has_value[some] * events[some]):
        if _explains(value, frauds[some]):
            return f"it tells how many frauds each {name} has better than chance allows: it knows later labels"
    return ""


def _leaves(
    x: NDArray[np.float64], y: NDArray[np.float64], change: NDArray[np.float64], previous: NDArray[np.int64]
) -> bool:
    """Whether a number falls when a larger `y` has just happened, and rises after a smaller one."""
    moves = (previous >= 0) & np.isfinite(change) & np.isfinite(y) & (np.abs(change) > 1e-9)
    ahead = (y > x)[moves]  # the event that leaves the mean is above what is left
    falls = change[moves] < 0
    by_chance = np.random.default_rng(0).permutation(y[moves]) > x[moves]
    each = [falls == way for way in (True, False)]
    agree, chance = (
        [float(np.mean(one[part] == falls[part])) for part in each if part.any()] for one in (ahead, by_chance)
    )
    return min(part.sum() for part in each) >= 5 * FEWEST and min(agree) >= FALLS and min(chance) <= BY_CHANCE


def _usual(value: NDArray[np.float64]) -> float:
    values, counts = np.unique(value, return_counts=True)
    return float(values[np.argmax(counts)])


def _never(value: NDArray[np.float64], later: NDArray[Any], events: NDArray[Any]) -> bool:
    """Whether the entities with the most usual value have no frauds where many are expected."""
    here = value == _usual(value) if len(value) else np.zeros(0, bool)
    if here.sum() < FEWEST or (~here).sum() < FEWEST:
        return False
    expected = events[here].sum() * later[~here].sum() / max(events[~here].sum(), 1.0)
    return bool(expected >= EXPECTED and later[here].sum() <= 0.05 * expected)


def _explains(value: NDArray[np.float64], frauds: NDArray[np.float64]) -> bool:
    """Whether entities with similar values have more equal counts than a Poisson process and than random entities."""
    if len(value) < FEWEST or np.ptp(frauds) == 0 or np.ptp(value) == 0:
        return False
    order = np.lexsort((np.random.default_rng(0).random(len(value)), value))
    left_open = np.mean(np.diff(frauds[order]) ** 2) / 2
    return bool(left_open <= EXPLAINED * min(float(np.var(frauds)), float(np.mean(frauds))))
