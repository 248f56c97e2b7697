"""Fine-tuning: label evidence moves the label-free score. Without labels, the score stays label-free."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from operator import add

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score

from models.cells import CHUNK, Cells
from models.fit.caution import Caution, choose
from models.fit.pretrain import Pretrained
from models.fit.review import by_entity, events_per_label, silent_columns
from models.fit.schedule import OnMetrics, OnShare
from models.fit.split import last_share
from models.fit.trees import no_trees, scarcity
from models.net.batches import chunks, surprises_of
from models.net.expectation import Expectation
from models.score.budget import Budget, threshold_for
from models.score.calibrate import LogitCalibration
from models.score.prior import Prior
from models.score.rules import Rules
from models.score.trees import Trees
from models.table import Table, TableError

MOST_ROWS = 300_000  # other rows than frauds to which the prior is fitted
SAMPLE = 50_000  # rows without a label, to tell which ones are given one
PER_FRAUD = 20  # legitimate rows for the trees


@dataclass(frozen=True)
class FinetuneConfig:
    """Settings of fine-tuning.

    Args:
        budget: alert budget, converted to a threshold on the validation period.
        n_trees: largest number of trees; trees that gain too little are left out.
        depth: largest depth of a tree.
        rate: learning rate of the trees.
        min_gain: most nats that a split must gain. It limits the trees to what the labels support.
        ridge: penalty of large leaf values if few frauds are known; from 80 on it falls with the root of their number.
            `caution.choose` lowers both if few frauds are known, and weights what the trees add.
        ordinary: largest number of legitimate rows for the trees, or 20 for each fraud if that is more; rows that look
            ordinary stand for several.
        judging: the same for `caution.choose`.
        validation: share of the known rows, the last in time, for calibration and threshold.
        maturity_ms: how old an event is when its label is known. If it is given, `validation_ap_delayed` is measured:
            the average precision of a model that knows no younger label, as it is in service.
    """

    budget: Budget = field(default_factory=lambda: Budget(rate=0.005))
    n_trees: int = 150
    depth: int = 4
    rate: float = 0.1
    min_gain: float = 6.0
    ridge: float = 10.0
    ordinary: int = 20_000
    judging: int = 4_000
    validation: float = 0.1
    maturity_ms: int | None = None


@dataclass(frozen=True)
class TrainedModel:
    """The pretrained networks, the trees that labels added and the rules. ``metrics`` are of the validation period.

    >>> TrainedModel.score.__doc__.split(",")[0]
    'Scores in [0'
    """

    expectation: Expectation
    student: Expectation
    trees: Trees
    rules: Rules
    metrics: Mapping[str, float]

    def score(self, numeric: NDArray[np.float64], categorical: NDArray[np.uint64]) -> NDArray[np.float32]:
        """Scores in [0, 1], high = anomalous, **shape (n,)**, computed by torch. `artifact.load` uses ONNX instead."""
        logit, nats = self.outputs(self.rules.coding.transform(numeric, categorical))
        return self.rules.score(logit, nats, numeric)

    def outputs(self, cells: Cells) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """What the trees add (n,), and surprises (n, n_fields)."""
        added = [np.zeros(0), *(self.trees.score(part) for part in chunks(cells))]
        return np.concatenate(added).astype(np.float32), surprises_of(self.student, cells)


def finetune(
    pretrained: Pretrained,
    table: Table,
    *,
    label: NDArray[np.int8],
    known: NDArray[np.bool_],
    config: FinetuneConfig,
    seed: int,
    report: OnMetrics | None = None,
    progress: OnShare | None = None,
) -> TrainedModel:
    """Fit the prior and the trees to known labels, calibrate, and turn the budget into a threshold.

    The prior is the label-free score as log-odds, with what labels say about the entities (`Prior`). Trees start from
    it and split only where the labels are strong enough evidence, so that few labels change little and many change
    much. If only frauds are known, the other rows count as legitimate in training.

    Args:
        pretrained: pretrained network with the same columns as the table.
        table: rows in time order. If labels are known, rows after the last known one are not used.
        label: 1 = fraud, int8, **shape (n,)**; read only where ``known`` is true.
        known: which labels are known, **shape (n,)**. If no fraud is, the model is label-free.
        config: settings.
        seed: seed of the trees and of subsamples.
        report: called with metrics and the number of trees.
        progress: called with the share done and a description.

    Raises:
        TableError: the columns or the shapes differ.
    """
    table.require(pretrained.rules.columns)
    if label.shape != (len(table),) or known.shape != (len(table),):
        raise TableError(f"label and known have shapes {label.shape} and {known.shape}; both must be ({len(table)},)")
    rules = replace(pretrained.rules, category_names=dict(table.category_names), budget=config.budget)
    train, valid = last_share(np.flatnonzero(known), config.validation)
    model = TrainedModel(
        pretrained.expectation,
        pretrained.student,
        no_trees(),
        rules,
        {"frauds": float((label[known] == 1).sum()), "trees": 0.0},
    )
    if not (label[train] == 1).any():
        return _with_threshold(model, table, label, known, valid, are_selected=False)
    only_frauds = bool((label[train] == 1).all())
    if only_frauds:
        train = np.union1d(train, np.flatnonzero(~known))
    label = np.where(known, label, 0).astype(np.int8)
    if progress:
        progress(0.1, f"{int((label[train] == 1).sum()):,} frauds")
    others = None if only_frauds else _Others.of(model, table, known, seed)
    whole = _Rows.of(model, table, np.union1d(train, valid), label, others, seed)
    strangers = _Strangers.of(table, known, seed)
    cautions = _cautions(model, table, whole, strangers, config, seed, are_selected=others is not None)
    part = _Rows.of(model, table, train, label, others, seed)
    judged = _fitted(model, table, part, strangers, config, cautions, seed)
    model = _with_threshold(judged, table, label, known, valid, are_selected=others is not None)
    metrics = dict(model.metrics)
    if config.maturity_ms and others is None and "validation_ap" in metrics:
        early = train[table.time_ms[train] < table.time_ms[valid[0]] - config.maturity_ms]
        if (label[early] == 1).any():
            rows = _Rows.of(model, table, early, label, None, seed)
            delayed = _fitted(model, table, rows, strangers, config, cautions, seed)
            _, raw = _evidence_and_raw(delayed, table, valid)
            metrics["validation_ap_delayed"] = float(average_precision_score(label[valid] == 1, raw))
    if progress:
        progress(0.6, "all known labels")
    # the newest labels are worth the most: the calibration and the threshold are those of the model without them
    final = _fitted(model, table, whole, strangers, config, cautions, seed)
    metrics |= {
        "tree_weight": sum(caution.weight for caution in cautions),
        "trees": float(len(final.trees.feature)),
    }
    if report:
        report(metrics, len(final.trees.feature))
    rules = replace(model.rules, prior=final.rules.prior)
    return replace(model, trees=final.trees, rules=rules, metrics=metrics)


@dataclass(frozen=True)
class _Others:
    """The rows whose labels could be known and are not: their number, and the evidence of a sample, **shape (m,)**."""

    evidence: NDArray[np.float64]
    n: int

    @classmethod
    def of(cls, model: TrainedModel, table: Table, known: NDArray[np.bool_], seed: int) -> _Others | None:
        """None if labels do not depend on the event: if all, or all of some entities, or only frauds have them."""
        last = int(np.flatnonzero(known)[-1])
        rows = np.flatnonzero(~known[:last])
        if len(rows) == 0 or (table.entity is not None and by_entity(known[:last], table.entity[:last])):
            return None
        sample = np.random.default_rng(seed).choice(rows, min(len(rows), SAMPLE), replace=False)
        return cls(_evidence(model, table, np.sort(sample)), len(rows))


@dataclass(frozen=True)
class _Strangers:
    """Entities without labels: their share of rows, and what columns say that are built from an entity's own labels.

    If labels are those of some entities, each row of the trees' training has such an entity, and an own history of
    labels; most scored rows have none. Trees would rest on columns that are mostly missing later.
    """

    columns: NDArray[np.int64]
    values: NDArray[np.float64]
    share: float

    @classmethod
    def of(cls, table: Table, known: NDArray[np.bool_], seed: int) -> _Strangers | None:
        """None if labels are not those of some entities."""
        last = int(np.flatnonzero(known)[-1])
        if table.entity is None or not by_entity(known[:last], table.entity[:last]):
            return None
        entity = table.entity[:last]
        rows = np.flatnonzero(~np.isin(entity, np.unique(entity[known[:last]])))
        if len(rows) == 0:
            return None
        sample = np.random.default_rng(seed).choice(rows, min(len(rows), SAMPLE), replace=False)
        numeric = np.asarray(table.numeric[np.sort(sample)])
        columns = silent_columns(table.columns, numeric)
        return cls(columns, numeric[0, columns], len(rows) / last)

    def cells(self, model: TrainedModel, table: Table, rows: NDArray[np.int64], seed: int) -> Cells:
        """Cells of rows, a share of which have the own history of labels of an entity without labels."""
        numeric, categorical = np.array(table.numeric[rows]), np.asarray(table.categorical[rows])
        chosen = np.random.default_rng(seed).random(len(table))[rows] < self.share
        numeric[np.ix_(chosen, self.columns)] = self.values
        return model.rules.coding.transform(numeric, categorical)


@dataclass(frozen=True)
class _Rows:
    """Rows to fit to, with the prior that was fitted to the same rows or to more of them."""

    prior: Prior
    rows: NDArray[np.int64]
    label: NDArray[np.int8]
    log_odds: NDArray[np.float64]
    weight: NDArray[np.float64]

    @classmethod
    def of(
        cls,
        model: TrainedModel,
        table: Table,
        train: NDArray[np.int64],
        label: NDArray[np.int8],
        others: _Others | None,
        seed: int,
    ) -> _Rows:
        """All frauds among some rows, and at most `MOST_ROWS` other ones."""
        rules = model.rules
        rows, weight = _drawn(train, label, MOST_ROWS, seed)
        numeric, evidence = np.asarray(table.numeric[rows]), _evidence(model, table, rows)
        if others is not None:
            fraud, each = label[rows] == 1, events_per_label(evidence, weight, others.evidence, others.n)
            relative = np.maximum(each / np.median(each[fraud]), 1.0)
            weight = weight * np.where(fraud, 1.0, relative)  # copies of one fraud would prove nothing
        prior = Prior.fit(rules.columns, evidence, numeric, label[rows], weight)
        return cls(prior, rows, label[rows], prior.log_odds(evidence, numeric), weight)

    def hardest(self, ordinary: int, seed: int) -> _Rows:
        """All frauds, and of the other rows at most `ordinary`: half those with the highest log-odds, half drawn."""
        others = np.flatnonzero(self.label != 1)
        if len(others) <= ordinary:
            return self
        others = others[np.argsort(-self.log_odds[others], kind="stable")]
        hard, easy = others[: ordinary // 2], others[ordinary // 2 :]
        drawn = np.random.default_rng(seed).choice(easy, ordinary - len(hard), replace=False)
        weight = self.weight.copy()
        weight[drawn] *= len(easy) / len(drawn)
        kept = np.sort(np.concatenate([np.flatnonzero(self.label == 1), hard, drawn]))
        return _Rows(self.prior, self.rows[kept], self.label[kept], self.log_odds[kept], weight[kept])


def _evidence(model: TrainedModel, table: Table, rows: NDArray[np.int64]) -> NDArray[np.float64]:
    """Label-free evidence of rows, **shape (n,)**."""
    rules = model.rules
    return rules.evidence_of(
        surprises_of(model.student, rules.coding.cells(table, rows)), np.asarray(table.numeric[rows])
    )


def _cells(
    model: TrainedModel, table: Table, rows: NDArray[np.int64], strangers: _Strangers | None, seed: int
) -> Cells:
    """Cells of rows for the trees."""
    if strangers is None:
        return model.rules.coding.cells(table, rows)
    return strangers.cells(model, table, rows, seed)


def _cautions(
    model: TrainedModel,
    table: Table,
    whole: _Rows,
    strangers: _Strangers | None,
    config: FinetuneConfig,
    seed: int,
    *,
    are_selected: bool,
) -> tuple[Caution, ...]:
    """How far the trees are believed; see `caution.choose`."""
    found = whole.hardest(min(config.ordinary, config.judging), seed)
    most = Caution(config.min_gain, config.ridge * min(1.0, 2 * scarcity(found.label)))
    if table.entity is None:
        return (most,)
    return choose(
        _cells(model, table, found.rows, strangers, seed),
        found.label,
        found.log_odds,
        table.entity[found.rows],
        weight=found.weight,
        depth=config.depth,
        most=most,
        seed=seed,
        are_selected=are_selected,
    )


def _fitted(
    model: TrainedModel,
    table: Table,
    whole: _Rows,
    strangers: _Strangers | None,
    config: FinetuneConfig,
    cautions: Sequence[Caution],
    seed: int,
) -> TrainedModel:
    """Add the trees that the labels of some rows support, with the prior of these rows."""
    found = whole.hardest(max(config.ordinary, PER_FRAUD * int(whole.label.sum())), seed)
    cells = _cells(model, table, found.rows, strangers, seed)
    trees = [
        caution.fit(
            cells,
            found.label,
            found.log_odds,
            row_weight=found.weight,
            n_trees=config.n_trees,
            depth=config.depth,
            rate=config.rate,
            seed=seed,
        )
        for caution in cautions
    ]
    rules = replace(model.rules, prior=found.prior)
    return replace(model, trees=reduce(add, trees) if trees else no_trees(), rules=rules)


def _drawn(
    train: NDArray[np.int64], label: NDArray[np.int8], ordinary: int, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Every fraud and at most `ordinary` other rows, in time order, and how many rows each stands for."""
    frauds, others = train[label[train] == 1], train[label[train] != 1]
    each = max(1.0, len(others) / ordinary)
    if each > 1:
        others = np.random.default_rng(seed).choice(others, ordinary, replace=False)
    rows = np.sort(np.concatenate([frauds, others]))
    return rows, np.where(label[rows] == 1, 1.0, each)


def _period(table: Table, valid: NDArray[np.int64]) -> NDArray[np.int64]:
    """All rows of the validation period, labelled or not; without labels the last tenth."""
    if len(valid) == 0:
        return last_share(np.arange(len(table)), 0.1, at_least=1).valid
    return np.arange(valid[0], valid[-1] + 1)


def _with_threshold(
    model: TrainedModel,
    table: Table,
    label: NDArray[np.int8],
    known: NDArray[np.bool_],
    valid: NDArray[np.int64],
    *,
    are_selected: bool,
) -> TrainedModel:
    """Calibrate on the known rows of the validation period, and turn the budget into a threshold on all its rows.

    If labels are ``are_selected``, each known row counts as the events that it stands for.
    """
    rows = _period(table, valid)
    rules, fraud = model.rules, known[rows] & (label[rows] == 1)
    evidence, raw = _evidence_and_raw(model, table, rows)
    metrics = {"has_head": float(rules.prior is not None)}
    judged, weight = np.isin(rows, valid), np.ones(len(rows))
    if rules.prior is not None and 0 < fraud[judged].sum() < judged.sum():
        others = evidence[~judged]
        if are_selected and len(others):
            weight[judged] = events_per_label(evidence[judged], weight[judged], others, len(others))
        rules = replace(rules, logit=LogitCalibration.fit(raw[judged], label[rows][judged], weight[judged]))
        for name, found in (("validation_ap", raw), ("validation_ap_label_free", evidence)):
            ap = average_precision_score(fraud[judged], found[judged], sample_weight=weight[judged])
            metrics[name] = float(ap)
    scores = rules.calibrated(raw)
    threshold = threshold_for(rules.budget, scores, table.time_ms[rows], label[rows], known[rows], weight)
    alerts = scores > threshold
    metrics["validation_alert_rate"] = float(alerts.mean())
    if fraud.any():
        reviewed = alerts & known[rows]
        metrics["validation_recall_at_budget"] = float(weight[alerts & fraud].sum() / weight[fraud].sum())
        precision = np.average(fraud[reviewed], weights=weight[reviewed]) if reviewed.any() else 0.0
        metrics["validation_precision_at_budget"] = float(precision)
    return replace(model, rules=replace(rules, threshold=threshold), metrics={**model.metrics, **metrics})


def _evidence_and_raw(
    model: TrainedModel, table: Table, rows: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """`Rules.evidence_of` and `Rules.raw` of rows, read `CHUNK` at a time, both **shape (n,)**."""
    evidence, raw = np.empty(len(rows)), np.empty(len(rows))
    for start in range(0, len(rows), CHUNK):
        part = slice(start, start + CHUNK)
        numeric = np.asarray(table.numeric[rows[part]])
        added, nats = model.outputs(model.rules.coding.cells(table, rows[part]))
        evidence[part] = model.rules.evidence_of(nats, numeric)
        raw[part] = model.rules.raw(evidence[part], added, numeric)
    return evidence, raw
