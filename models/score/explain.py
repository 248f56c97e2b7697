"""Reasons from the mask: per field what was expected, how much it surprises, and the score had it been so."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.cells import Cells
from models.masking import event_fields
from models.score.rules import Rules
from models.table import Column

N_REASONS = 4  # a person reads the top few
MIN_NATS = 2.0  # about one row in fifty by chance: less is no surprise
MIN_DROP = 0.02  # share of the score that a field must carry to be named
MAX_NATS = 99.0

Expect = Callable[[Cells], tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]]
ScoreRows = Callable[[NDArray[np.float64], NDArray[np.uint64]], NDArray[np.float32]]
Value = float | str | None


@dataclass(frozen=True)
class FieldReason:
    """Why one field speaks for an alert.

    Args:
        field: name of the event's field, or of the history column that is odd.
        actual, expected: in the field's own unit, or text; None = missing.
        surprise: nats, 0 = as expected.
        score_if_expected: the score had this field, and all columns that reveal it, been as expected.
    """

    field: str
    actual: Value
    expected: Value
    surprise: float
    score_if_expected: float


@dataclass(frozen=True)
class Explanation:
    """Reasons of one row, the strongest first, and the score had all of them been as expected."""

    reasons: list[FieldReason]
    score_if_all_expected: float

    def as_json(self) -> dict[str, Any]:
        """JSON-able form."""
        return asdict(self)


@dataclass(frozen=True)
class Group:
    """Columns replaced together: a field with all that reveals it, or one history over all its windows."""

    name: str
    columns: tuple[int, ...]
    shown: tuple[int, ...]


def groups(columns: Sequence[Column]) -> tuple[Group, ...]:
    """The fields of the event, then the histories: names without their last part, the window.

    >>> found = groups([Column("amount", "numeric", "amount"), Column("c.count.1d", "numeric"),
    ...                 Column("c.count.7d", "numeric")])
    >>> [(g.name, g.columns) for g in found]
    [('amount', (0,)), ('c.count', (1, 2))]
    """
    fields = event_fields(columns)
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
    """Explain rows, meant for the few that alert.

    Every group is hidden and predicted from the rest. The counterfactual row takes the predictions of
    *all* its columns, so a ratio or z-score that derives from the amount is replaced with it, by its own
    expected value.
    What is built from labels is not predicted: its expected value is the training median.

    Args:
        rules: of the model.
        expect: cells -> mean, log deviation (both scaled, (n, d_num)) and logits (n, all codes).
        score: raw columns -> scores.
        numeric, categorical: raw columns, **shapes (n, d_num), (n, d_cat)**.
    """
    if len(numeric) == 0:
        return []
    coding, d = rules.coding, rules.coding.d_num
    parts = groups(rules.columns)
    n, n_groups = len(numeric), len(parts)
    cells = coding.transform(numeric, categorical)
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
    starts = np.cumsum([0, *coding.n_codes])

    was = score(numeric, categorical)
    changed_numeric = np.repeat(numeric, n_groups, axis=0)
    changed_categorical = np.repeat(categorical, n_groups, axis=0)
    shown: list[list[tuple[str, Value, Value, float]]] = [[] for _ in range(n)]
    for r in range(n):
        for g, group in enumerate(parts):
            row = r * n_groups + g
            found: list[tuple[float, str, Value, Value]] = []
            for i in group.columns:
                name = rules.columns[i].name
                if i < d:
                    value = coding.numeric_value(i, expected[row, i])
                    if cells.present[r, i]:
                        changed_numeric[row, i] = value
                    actual = float(numeric[r, i]) if cells.present[r, i] else None
                    found.append((float(nats[row, i]), name, _rounded(actual), _rounded(value)))
                    continue
                j = i - d
                chances = _softmax(logits[row, starts[j] : starts[j + 1]])
                # code 0 is missing, 1 is any unknown text: neither is a value that a person could expect
                best = int(np.argmax(chances[2:])) if len(chances) > 2 else None
                expected_hash = 0 if best is None else int(coding.vocabularies[j][best])
                code = int(cells.codes[r, j])
                if code:
                    changed_categorical[row, j] = expected_hash
                surprise = float(-np.log(max(chances[code], 1e-6))) if code else 0.0
                texts = [_text(rules, int(categorical[r, j])), _text(rules, expected_hash)]
                found.append((surprise, name, texts[0], texts[1]))
            visible = [found[group.columns.index(i)] for i in group.shown]
            surprise, name, actual_, expected_ = max(visible, key=lambda one: one[0])
            shown[r].append((name, actual_, expected_, surprise))
    scores = score(changed_numeric, changed_categorical).reshape(n, n_groups)

    chosen = [_chosen(float(was[r]), scores[r], [one[3] for one in shown[r]]) for r in range(n)]
    all_numeric, all_categorical = numeric.copy(), categorical.copy()
    for r, picked in enumerate(chosen):
        for g in picked:
            for i in parts[g].columns:
                if i < d:
                    all_numeric[r, i] = changed_numeric[r * n_groups + g, i]
                else:
                    all_categorical[r, i - d] = changed_categorical[r * n_groups + g, i - d]
    all_scores = score(all_numeric, all_categorical)
    return [
        Explanation(
            [FieldReason(*shown[r][g][:3], round(shown[r][g][3], 3), float(scores[r, g])) for g in chosen[r]],
            float(all_scores[r]),
        )
        for r in range(n)
    ]


def _chosen(was: float, scores: NDArray[np.float32], nats: Sequence[float]) -> list[int]:
    """Groups worth naming, by the drop they cause; where none alone lowers the score, by surprise."""
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
