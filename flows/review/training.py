"""The reports of the two trainings: of the encoder, and of the model that the gate judges."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from flows.review import alerts
from flows.review.alerts import Scored
from flows.review.sections import Plot, Rows, Section
from models import plots
from models.evaluation import Group, Share, concerns, groups_of
from models.fit.pretrain import FIELD_LOSS, Pretrained
from models.score.budget import Budget
from models.table import Table
from pipelines.contracts.stream import Stream

Curves = Mapping[str, Sequence[tuple[float, float]]]  # name of a metric, and its points (step, value)
N_CURVES = 6  # fields whose loss has a curve of its own in the plot


def of_encoder(pretrained: Pretrained, curves: Curves) -> list[Section]:
    """How the encoder learned, and how far each field can be predicted."""
    by_field = {name.removeprefix(FIELD_LOSS): points for name, points in curves.items() if name.startswith(FIELD_LOSS)}
    marginal = _named(pretrained.metrics, "marginal.")
    losses = {name: marginal[name] - gain for name, gain in _named(pretrained.metrics, "skill.").items()}
    drawn = [Plot("field_losses", plots.field_losses(losses, marginal))]
    learning = []
    if whole := {name: points for name, points in curves.items() if name in ("train_loss", "validation_loss")}:
        learning.append(Plot("loss", plots.training_curves(whole)))
    if by_field:
        most = sorted(by_field, key=lambda name: losses[name] - marginal[name])[:N_CURVES]
        picked = {name: by_field[name] for name in most}
        learning.append(Plot("field_loss_curves", plots.training_curves(picked, ylabel="masked loss of a field")))
    if probes := {name: points for name, points in curves.items() if "probe" in name}:
        figure = plots.training_curves(probes, ylabel="probe average precision", higher_is_better=True)
        learning.append(Plot("probe", figure))
    weak = [name for name, loss in losses.items() if loss >= marginal[name]]
    words = ["The more nats a field gains, the more an unexpected value of it counts."]
    if weak:
        words.append(f"Not predictable, so never a surprise: {', '.join(weak)}.")
    return [Section("Learning", plots=learning), Section("Fields", words, plots=drawn)]


def of_model(stream: Stream, scored: Scored, budget: Budget) -> list[Section]:
    """The scores of held-out events: against their labels, if some are known to be fraud, or without labels."""
    if scored.label is None or not (scored.label == 1).any() or (scored.label == 1).all():
        return _without_labels(scored, budget)
    label, score, threshold, table = scored.label, scored.score, scored.model.threshold, scored.table
    cost = budget.cost[1] if budget.cost else None
    accuracy = [
        Plot("precision_recall", plots.pr_curve(label, score, threshold=threshold)),
        Plot("roc", plots.roc_curve(label, score, threshold=threshold)),
        Plot("score_histogram", plots.score_histogram(score, label=label, threshold=threshold)),
        Plot("calibration", plots.calibration(label, score)),
        Plot("precision_at_budget", plots.precision_at_budget(label, score, threshold=threshold)),
    ]
    if (name := stream.report.value) is not None:
        value = _column(table, name)
        figure = plots.value_at_cost(label, score, value, name=name, review_cost=cost, threshold=threshold)
        accuracy.append(Plot("value_at_cost", figure))
    fraud, alert = label == 1, scored.alert
    words = (
        f"{len(label):,} events with known labels, {int(fraud.sum()):,} of them fraud ({fraud.mean():.2%}), which "
        "neither the model nor its threshold has seen."
    )
    found = [Section("Accuracy on held-out events", [words], plots=accuracy)]
    if stream.report.segments:
        found.append(_groups(stream, table, label, alert))
    events = "Each with its strongest reasons: the value, the expected value, and the score with it."
    return [
        *found,
        Section("Hardest misses", [f"Frauds with the lowest scores. {events}"], tables=[alerts.misses(scored)]),
        Section(
            "False alarms", [f"The highest scores that are no fraud. {events}"], tables=[alerts.false_alarms(scored)]
        ),
    ]


def _groups(stream: Stream, table: Table, label: NDArray[np.int8], alert: NDArray[np.bool_]) -> Section:
    fraud = label == 1
    groups = groups_of(table, label, alert, stream.report.segments)
    recall = Share(int((alert & fraud).sum()), int(fraud.sum()))
    precision = Share(recall.k, int(alert.sum()))
    false = Share(int((alert & ~fraud).sum()), int((~fraud).sum()))
    warnings = concerns(groups, recall=recall, false_alarms=false)
    words = [] if warnings else ["No group differs from all events by more than chance."]
    figure = plots.by_group(groups, recall=recall, precision=precision)
    return Section("Groups", words, warnings, [Plot("groups", figure)], [_group_rows(groups)])


def _group_rows(groups: Sequence[Group]) -> Rows:
    head = ("field", "value", "events", "frauds", "alerts", "alert rate", "precision", "recall", "false alarms")
    rows = [
        (
            g.field,
            g.value,
            f"{g.events:,}",
            f"{g.frauds:,}",
            f"{g.alerts:,}",
            f"{g.alert_rate.value:.2%}",
            _share(g.precision),
            _share(g.recall),
            f"{g.false_alarm_rate.value:.2%}",
        )
        for g in groups
    ]
    return Rows("groups", head, rows)


def _share(share: Share) -> str:
    return f"{share.value:.0%} ({share.low * 100:.0f}-{share.high:.0%})" if share.n else "-"


def _without_labels(scored: Scored, budget: Budget) -> list[Section]:
    threshold, alert = scored.model.threshold, scored.alert
    shown = [
        Plot("score_histogram", plots.score_histogram(scored.score, threshold=threshold)),
        Plot("scores_over_time", plots.scores(scored.table.time_ms, scored.score, threshold=threshold)),
        Plot("alerts_over_time", plots.alert_rate(scored.table.time_ms, alert, allowed=budget.rate)),
    ]
    words = (
        f"No label of these {len(alert):,} newest events is known to be fraud, so nothing here says how good the "
        "scores are: check the reasons of the highest ones."
    )
    return [
        Section("Scores of held-out events", [words], plots=shown),
        Section("What is unusual", ["Reasons of the highest alerts."], tables=[alerts.surprising_fields(scored)]),
        Section("Highest scores", tables=[alerts.highest(scored)]),
    ]


def _column(table: Table, name: str) -> NDArray[np.float64]:
    names = [column.name for column in table.columns]
    return np.asarray(table.numeric[:])[:, names.index(name)]


def _named(metrics: Mapping[str, float], prefix: str) -> dict[str, float]:
    return {name.removeprefix(prefix): value for name, value in metrics.items() if name.startswith(prefix)}
