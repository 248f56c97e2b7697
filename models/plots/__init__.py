"""Plots of a run, for MLflow and the report. Each function takes arrays and returns a figure."""

from models.plots.accuracy import calibration, pr_curve, precision_at_budget, roc_curve, score_histogram, value_at_cost
from models.plots.canvas import FRAUD, LEGIT, MARK, svg_of
from models.plots.drift import severities
from models.plots.groups import by_group
from models.plots.time import Period, alert_rate, periods, scores
from models.plots.training import field_losses, label_efficiency, training_curves

__all__ = [
    "FRAUD",
    "LEGIT",
    "MARK",
    "Period",
    "alert_rate",
    "by_group",
    "calibration",
    "field_losses",
    "label_efficiency",
    "periods",
    "pr_curve",
    "precision_at_budget",
    "roc_curve",
    "score_histogram",
    "scores",
    "severities",
    "svg_of",
    "training_curves",
    "value_at_cost",
]
