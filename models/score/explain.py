"""Reasons of alerts: for each field the expected value, the surprise, and the score with the expected value."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.cells import Cells
from models.masking import event_fields
from models.score.rules import Rules
from models.table import Column

N_REASONS = 4  # shown to a person
MIN_NATS = 2.0  # exceeded by about one row in fifty by chance
MIN_DROP = 0.02  # minimum share of the score that a named field must account for
MAX_NATS = 99.0

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
    """Reasons of one row, the strongest first, and the score with the expected values in all of these fields."""

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


def groups(columns: Sequence[Column], context: Sequence[str] = ()) -> tuple[Group, ...]:
    """The fields of the event, then the histories. A history has the name of its columns without the window.

    >>> found = groups([Column("amount", "numeric", "amount"), Column("c.count.1d", "numeric"),
    ...                 Column("c.count.7d", "numeric")])
    >>> [(g.name, g.columns) for g in found]
    [('amount', (0,)), ('c.count', (1, 2))]
    """
    fields = event_fields(columns, context)
    taken = {i for field in fields for i in field.columns}
    found = [Group(field.name, field.columns, (field.target,)) for field in fields]
    histories: dict[str, list[int]] = {}
    for i, column in enumerate(columns):
        if i not in taken:
            histories.setdefault(column.of or column.name.rpartition(".")[0] or column.name, []).append(i)
    return (*found, *(Group(name, tuple(i), tuple(i)) for name, i in histories.items()))


def explain(
    rules: Rules, expect: Expect, score: ScoreRows, numeric: NDArray[np.float64], categorical: NDArray[np.uint64]
) -> list[Explanation]:
    """Explain rows. Meant for alerts, because it is expensive.

    Each group is hidden and predicted from the other columns. In the counterfactual row, *all* columns of the group
    have their predicted values: with the amount, its ratio and z-score are replaced too. Columns built from labels
    are not predicted; their expected value is the training median.

    Args:
        rules: rules of the model.
        expect: function from cells to mean, log deviation (both scaled, (n, d_num)) and logits (n, all codes).
        score: function from raw columns to scores.
        numeric, categorical: raw columns, **shapes (n, d_num), (n, d_cat)**.
    """
    if len(numeric) == 0:
        return []
    parts = groups(rules.columns, rules.coding.context)
    n, n_groups = len(numeric), len(parts)
    was = score(numeric, categorical)
    changed, shown = _expected(rules, expect, parts, numeric, categorical)
    scores = score(*changed).reshape(n, n_groups)
    chosen = [_chosen(float(was[r]), scores[r], [one.surprise for one in shown[r]]) for r in range(n)]
    all_scores = score(*_all_replaced(numeric, categorical, changed, parts, chosen))
    return [
        Explanation(
            [
                FieldReason(one.name, one.actual, one.expected, round(one.surprise, 3), float(scores[r, g]))
                for g in chosen[r]
                for one in [shown[r][g]]
            ],
            float(all_scores[r]),
        )
        for r in range(n)
    ]


def as_expected(
    rules: Rules,
    expect: Expect,
    numeric: NDArray[np.float64],
    categorical: NDArray[np.uint64],
    chosen: Sequence[Sequence[int]],
) -> tuple[NDArray[np.float64], NDArray[np.uint64]]:
    """Rows with the expected values in some groups of columns.

    Args:
        rules, expect, numeric, categorical: see `explain`.
        chosen: for each row, indices of `groups`.
    """
    parts = groups(rules.columns, rules.coding.context)
    changed, _ = _expected(rules, expect, parts, numeric, categorical)
    return _all_replaced(numeric, categorical, changed, parts, chosen)


class _Predicted(NamedTuple):
    """Predictions with each group hidden. Row r with group g has the index r * n_groups + g; (n * n_groups, ...)."""

    expected: NDArray[np.float64]  # scaled
    nats: NDArray[np.float64]
    logits: NDArray[np.float32]


class _Changed(NamedTuple):
    """Raw rows with the expected values of a group's columns, in the order of `_Predicted`."""

    numeric: NDArray[np.float64]
    categorical: NDArray[np.uint64]


class _Shown(NamedTuple):
    """One column in readable form."""

    name: str
    actual: Value
    expected: Value
    surprise: float


def _expected(
    rules: Rules,
    expect: Expect,
    parts: Sequence[Group],
    numeric: NDArray[np.float64],
    categorical: NDArray[np.uint64],
) -> tuple[_Changed, list[list[_Shown]]]:
    """The rows with each group as expected, and how each group of each row is shown."""
    n_groups = len(parts)
    cells = rules.coding.transform(numeric, categorical)
    predicted = _predict(rules, expect, parts, cells)
    changed = _Changed(np.repeat(numeric, n_groups, axis=0), np.repeat(categorical, n_groups, axis=0))
    shown = [
        [_replace_group(rules, predicted, cells, changed, r, r * n_groups + g, group) for g, group in enumerate(parts)]
        for r in range(len(numeric))
    ]
    return changed, shown


def _predict(rules: Rules, expect: Expect, parts: Sequence[Group], cells: Cells) -> _Predicted:
    """Hide every group of every row and predict it from the rest."""
    d, n_groups = rules.coding.d_num, len(parts)
    values, present = np.repeat(cells.values, n_groups, axis=0), np.repeat(cells.present, n_groups, axis=0)
    codes = np.repeat(cells.codes, n_groups, axis=0)
    for g, group in enumerate(parts):
        for i in group.columns:
            if i < d:
                present[g::n_groups, i] = 0.0
            else:
                codes[g::n_groups, i - d] = 0
    mean, spread, logits = expect(Cells(values, present, codes))
    expected = np.where(np.isfinite(mean), mean, 0.0).astype(np.float64)
    log_width = np.where(np.isfinite(spread), spread, 0.0).astype(np.float64)
    fed = [i for i, column in enumerate(rules.columns[:d]) if column.label_fed]
    expected[:, fed] = 0.0
    log_width[:, fed] = 0.0
    z = (values - expected) * np.exp(-log_width)
    nats = np.minimum(0.5 * z * z, MAX_NATS) * np.repeat(cells.present, n_groups, axis=0)
    return _Predicted(expected, nats, logits)


def _replace_group(
    rules: Rules, predicted: _Predicted, cells: Cells, changed: _Changed, r: int, at: int, group: Group
) -> _Shown:
    """Set a group's columns to their expected values in `changed`. Return the column with the largest surprise."""
    d, found = rules.coding.d_num, {}
    for i in group.columns:
        if i < d:
            actual = float(changed.numeric[at, i]) if cells.present[r, i] else None
            value = rules.coding.numeric_value(i, predicted.expected[at, i])
            if actual is not None:
                changed.numeric[at, i] = value
            name, nats = rules.columns[i].name, float(predicted.nats[at, i])
            found[i] = _Shown(name, _rounded(actual), _rounded(value), nats)
        else:
            j = i - d
            found[i], expected_hash = _category(
                rules, i, predicted.logits[at], int(cells.codes[r, j]), int(changed.categorical[at, j])
            )
            if cells.codes[r, j]:
                changed.categorical[at, j] = expected_hash
    return max((found[i] for i in group.shown), key=lambda one: one.surprise)


def _category(rules: Rules, i: int, logits: NDArray[np.float32], code: int, actual: int) -> tuple[_Shown, int]:
    """A categorical column in readable form, and the hash of its expected text (0 = none)."""
    coding = rules.coding
    j = i - coding.d_num
    start = sum(coding.n_codes[:j])
    chances = _softmax(logits[start : start + coding.n_codes[j]])
    # codes 0 (missing) and 1 (unknown text) are not useful as expected values
    best = int(np.argmax(chances[2:])) if len(chances) > 2 else None
    expected = 0 if best is None else int(coding.vocabularies[j][best])
    surprise = float(-np.log(max(chances[code], 1e-6))) if code else 0.0
    return _Shown(rules.columns[i].name, _text(rules, actual), _text(rules, expected), surprise), expected


def _all_replaced(
    numeric: NDArray[np.float64],
    categorical: NDArray[np.uint64],
    changed: _Changed,
    parts: Sequence[Group],
    chosen: Sequence[Sequence[int]],
) -> _Changed:
    """The rows with the expected values in all their chosen groups."""
    whole, d, n_groups = _Changed(numeric.copy(), categorical.copy()), numeric.shape[1], len(parts)
    for r, picked in enumerate(chosen):
        for g in picked:
            for i in parts[g].columns:
                if i < d:
                    whole.numeric[r, i] = changed.numeric[r * n_groups + g, i]
                else:
                    whole.categorical[r, i - d] = changed.categorical[r * n_groups + g, i - d]
    return whole


def _chosen(was: float, scores: NDArray[np.float32], nats: Sequence[float]) -> list[int]:
    """Groups to name, ordered by how much they lower the score; if none does alone, by surprise."""
    drop = [was - float(score) for score in scores]
    order = sorted(range(len(nats)), key=lambda g: (-round(drop[g], 4), -nats[g]))
    worth = [g for g in order if drop[g] >= MIN_DROP * was]
    if not worth:
        order.sort(key=lambda g: -nats[g])
        worth = [g for g in order[:2] if nats[g] >= MIN_NATS]
    return (worth or order[:1])[:N_REASONS]


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.6g}")


def _text(rules: Rules, category: int) -> str | None:
    return None if category == 0 else rules.category_names.get(category, f"#{category:016x}")


def _softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    odds = np.exp(logits.astype(np.float64) - logits.max())
    return np.asarray(odds / odds.sum(), np.float64)
