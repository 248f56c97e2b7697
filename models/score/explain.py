"""Reasons of alerts: for each field the expected value, the surprise, and the score with the expected value."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.cells import MISSING, Cells
from models.masking import event_fields
from models.score.rules import Rules
from models.table import Column

N_REASONS = 4  # of those that lower the score alone
MOST_REASONS = 8  # with those that are needed beside them
MIN_NATS = 2.0  # exceeded by about one row in fifty by chance
MIN_DROP = 0.02  # minimum share of the score that a named field must account for
MAX_NATS = 99.0
LEAST_CHANCE = 1e-6  # of a category

Expect = Callable[[Cells], tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]]
ScoreRows = Callable[[NDArray[np.float64], NDArray[np.uint64]], NDArray[np.float32]]
Value = float | str | None


@dataclass(frozen=True)
class FieldReason:
    """One reason of an alert.

    Args:
        field: name of the unexpected field or history column.
        actual, expected: values in the unit of the field, or text; None = missing.
        surprise: surprise in nats, 0 = as expected.
        score_if_expected: the score with the expected value in this field and in all columns derived from it.
    """

    field: str
    actual: Value
    expected: Value
    surprise: float
    score_if_expected: float


@dataclass(frozen=True)
class Explanation:
    """Reasons of one row, and the score with the values of all of these fields that the other fields predict."""

    reasons: list[FieldReason]
    score_if_all_expected: float

    def as_json(self) -> dict[str, Any]:
        """Convert to JSON types."""
        return asdict(self)


@dataclass(frozen=True)
class Group:
    """Columns replaced together: a field and the columns derived from it, or one history over all its windows."""

    name: str
    columns: tuple[int, ...]
    shown: tuple[int, ...]


@cache
def groups(columns: tuple[Column, ...], context: tuple[str, ...] = ()) -> tuple[Group, ...]:
    """The fields of the event, then the histories. A history has the name of its columns without the window.

    What labels say about an entity is one history: its rates, counts and runs all tell of the same frauds. So are its
    last events: their ages, hours and values.

    >>> found = groups((Column("amount", "numeric", "amount"), Column("c.count.1d", "numeric"),
    ...                 Column("c.count.7d", "numeric")))
    >>> [(g.name, g.columns) for g in found]
    [('amount', (0,)), ('c.count', (1, 2))]
    """
    fields = event_fields(columns, context)
    taken = {i for field in fields for i in field.columns}
    found = [Group(field.name, field.columns, (field.target,)) for field in fields]
    histories: dict[str, list[int]] = {}
    for i, column in enumerate(columns):
        if i not in taken:
            name = column.of
            if column.entity and column.label_fed:
                name = f"{column.entity}.labels"
            elif column.entity and (column.stat or "").startswith("last_"):
                name = f"{column.entity}.last"
            histories.setdefault(name or column.name.rpartition(".")[0] or column.name, []).append(i)
    return (*found, *(Group(name, tuple(i), tuple(i)) for name, i in histories.items()))


def explain(
    rules: Rules, expect: Expect, score: ScoreRows, numeric: NDArray[np.float64], categorical: NDArray[np.uint64]
) -> list[Explanation]:
    """Explain rows. Meant for alerts, because it is expensive.

    Each group is hidden and predicted from the other columns. In the counterfactual row, *all* columns of the group
    have their predicted values: with the amount, its ratio and z-score are replaced too. Columns built from labels
    are not predicted; their expected value is the training median.

    The groups that lower the score alone are named, the strongest first. While the row still raises an alert with all
    of them as expected, the group is added that lowers the score most beside them, or is the most surprising one. If
    the row raises an alert whatever is added, nothing is.

    Args:
        rules: rules of the model.
        expect: function from cells to mean, log deviation (both scaled, (n, d_num)) and logits (n, all codes).
        score: function from raw columns to scores.
        numeric, categorical: raw columns, **shapes (n, d_num), (n, d_cat)**.

    Source: greedy search for a counterfactual (Martens and Provost, 2014).
    """
    if len(numeric) == 0:
        return []
    parts = groups(rules.columns, rules.coding.context)
    n, n_groups = len(numeric), len(parts)
    each = np.repeat(np.arange(n), n_groups)
    alone = _expected(rules, expect, parts, numeric[each], categorical[each], [[g] for g in range(n_groups)] * n)
    # One call for both: it has a fixed cost.
    found = score(np.concatenate([numeric, alone.numeric]), np.concatenate([categorical, alone.categorical]))
    was, scores = found[:n], found[n:].reshape(n, n_groups)
    shown = [
        [_shown(rules.columns, part, alone.nats[r * n_groups + g]) for g, part in enumerate(parts)] for r in range(n)
    ]
    nats = np.take_along_axis(alone.nats.reshape(n, n_groups, -1), np.array(shown)[:, :, None], axis=2)[:, :, 0]
    chosen = [_chosen(float(was[r]), scores[r], nats[r].tolist()) for r in range(n)]
    all_scores = _add_until_quiet(rules, expect, score, numeric, categorical, chosen, nats)
    explanations = []
    for r, named in enumerate(chosen):
        reasons = [
            FieldReason(
                *_readable(rules, numeric[r], categorical[r], alone, r * n_groups + g, shown[r][g]),
                round(float(nats[r, g]), 3),
                float(scores[r, g]),
            )
            for g in named
        ]
        explanations.append(Explanation(reasons, float(all_scores[r])))
    return explanations


def _add_until_quiet(
    rules: Rules,
    expect: Expect,
    score: ScoreRows,
    numeric: NDArray[np.float64],
    categorical: NDArray[np.uint64],
    chosen: list[list[int]],
    nats: NDArray[np.float64],
) -> NDArray[np.float32]:
    """Add to the chosen groups until no row raises an alert. Returns the scores with all of them as expected."""
    scores = score(*as_expected(rules, expect, numeric, categorical, chosen))
    wider, lower = list(chosen), scores.copy()
    while tried := [
        (r, g)
        for r in np.flatnonzero(lower > rules.threshold)
        if len(wider[r]) < MOST_REASONS
        for g in range(nats.shape[1])
        if g not in wider[r]
    ]:
        rows = np.array([r for r, _ in tried])
        picked = [[*wider[r], g] for r, g in tried]
        found = score(*as_expected(rules, expect, numeric[rows], categorical[rows], picked))
        for r in np.unique(rows):
            best = min(np.flatnonzero(rows == r), key=lambda k: (round(float(found[k]), 4), -nats[tried[k]]))
            wider[r], lower[r] = picked[best], found[best]
    for r in np.flatnonzero(lower <= rules.threshold):
        chosen[r], scores[r] = wider[r], lower[r]
    return scores


def as_expected(
    rules: Rules,
    expect: Expect,
    numeric: NDArray[np.float64],
    categorical: NDArray[np.uint64],
    chosen: Sequence[Sequence[int]],
) -> tuple[NDArray[np.float64], NDArray[np.uint64]]:
    """Rows with predicted values in some groups of columns. Missing values stay missing.

    Args:
        rules, expect, numeric, categorical: see `explain`.
        chosen: for each row, indices of `groups`.
    """
    parts = groups(rules.columns, rules.coding.context)
    found = _expected(rules, expect, parts, numeric, categorical, chosen)
    return found.numeric, found.categorical


class _Expected(NamedTuple):
    """Raw rows with expected values in the hidden columns, and surprises, valid for these columns, **shape (n, d)**."""

    numeric: NDArray[np.float64]
    categorical: NDArray[np.uint64]
    nats: NDArray[np.float64]


def _expected(
    rules: Rules,
    expect: Expect,
    parts: Sequence[Group],
    numeric: NDArray[np.float64],
    categorical: NDArray[np.uint64],
    chosen: Sequence[Sequence[int]],
) -> _Expected:
    """Hide the chosen groups of each row together and predict them from the rest."""
    coding = rules.coding
    d, cells = coding.d_num, coding.transform(numeric, categorical)
    hidden = np.zeros((len(numeric), len(rules.columns)), bool)
    for row, picked in zip(hidden, chosen, strict=True):
        row[[i for g in picked for i in parts[g].columns]] = True
    mean, spread, logits = expect(
        Cells(
            cells.values,
            np.where(hidden[:, :d], np.float32(0), cells.present),
            np.where(hidden[:, d:], MISSING, cells.codes),
        )
    )
    fed = np.array([column.label_fed for column in rules.columns[:d]], bool)
    center = np.where(fed | ~np.isfinite(mean), 0.0, mean).astype(np.float64)
    log_width = np.where(fed | ~np.isfinite(spread), 0.0, spread).astype(np.float64)
    z = (cells.values - center) * np.exp(-log_width)
    nats = np.zeros(hidden.shape)
    nats[:, :d] = np.minimum(0.5 * z * z, MAX_NATS) * cells.present
    found = _Expected(numeric.copy(), categorical.copy(), nats)
    at = hidden[:, :d] & (cells.present > 0)
    found.numeric[at] = coding.numeric_values(center)[at]
    first = 0
    for j, n_codes in enumerate(coding.n_codes):
        at, code = hidden[:, d + j], cells.codes[:, j]
        chances = _softmax(logits[at, first : first + n_codes])
        first += n_codes
        given = np.take_along_axis(chances, code[at][:, None], axis=1)[:, 0]
        nats[at, d + j] = np.where(code[at] == MISSING, 0.0, -np.log(np.maximum(given, LEAST_CHANCE)))
        # codes 0 (missing) and 1 (unknown text) are no expected values
        best = coding.vocabularies[j].astype(np.uint64)[np.argmax(chances[:, 2:], axis=1)] if n_codes > 2 else 0
        found.categorical[at, j] = best
        found.categorical[code == MISSING, j] = categorical[code == MISSING, j]
    return found


def _readable(
    rules: Rules,
    numeric: NDArray[np.float64],
    categorical: NDArray[np.uint64],
    expected: _Expected,
    at: int,
    i: int,
) -> tuple[str, Value, Value]:
    """Name, actual and expected value of a column."""
    d, name = rules.coding.d_num, rules.columns[i].name
    if i >= d:
        return name, _text(rules, int(categorical[i - d])), _text(rules, int(expected.categorical[at, i - d]))
    actual = float(numeric[i])
    return name, _rounded(actual), _rounded(float(expected.numeric[at, i]))


def _shown(columns: Sequence[Column], group: Group, nats: NDArray[np.float64]) -> int:
    """The column that is shown for a group: the most surprising one; a surprising one about frauds comes first."""
    surprising = [i for i in group.shown if nats[i] >= MIN_NATS and "fraud" in (columns[i].stat or "")]
    return max(surprising or group.shown, key=nats.__getitem__)


def _chosen(was: float, scores: NDArray[np.float32], nats: Sequence[float]) -> list[int]:
    """Groups to name, ordered by how much they lower the score; if none does alone, by surprise."""
    drop = [was - float(score) for score in scores]
    order = sorted(range(len(nats)), key=lambda g: (-round(drop[g], 4), -nats[g]))
    worth = [g for g in order if drop[g] >= MIN_DROP * was]
    if not worth:
        order.sort(key=lambda g: -nats[g])
        worth = [g for g in order[:2] if nats[g] >= MIN_NATS]
    return (worth or order[:1])[:N_REASONS]


def _rounded(value: float) -> float | None:
    return float(f"{value:.6g}") if np.isfinite(value) else None


def _text(rules: Rules, category: int) -> str | None:
    return None if category == 0 else rules.category_names.get(category, f"#{category:016x}")


def _softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    odds = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    return np.asarray(odds / odds.sum(axis=1, keepdims=True), np.float64)
