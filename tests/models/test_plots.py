import io

import numpy as np
import pytest

from models import plots
from models.evaluation import Group, Share
from models.plots import Period, pr_curve, precision_at_budget, score_histogram, svg_of, training_curves

RNG = np.random.default_rng(7)
LABEL = (RNG.random(5_000) < 0.01).astype(np.int8)
VALUE = np.where(RNG.random(5_000) < 0.1, np.nan, RNG.gamma(2, 50, 5_000))
TIME_MS = np.sort(RNG.integers(1_700_000_000_000, 1_703_000_000_000, 5_000))
SCORE = np.clip(RNG.beta(1, 12, 5_000) + 0.5 * LABEL * RNG.random(5_000), 0.0, 1.0)


def test_every_plot_can_be_drawn_and_names_its_axes():
    group = Group("channel", "web", events=900, frauds=40, alerts=0, caught=0)
    periods = [Period("validation", 0.6, 40, 900), Period("live", 0.4, 20, 900, label_free=0.3, interval=(0.3, 0.5))]
    titled = [
        pr_curve(LABEL, SCORE, threshold=0.4),
        plots.roc_curve(LABEL, SCORE, threshold=0.4),
        plots.calibration(LABEL, SCORE),
        precision_at_budget(LABEL, SCORE, threshold=0.4),
        plots.value_at_cost(LABEL, SCORE, VALUE, name="amount", review_cost=5.0, threshold=0.4),
        plots.value_at_cost(LABEL, SCORE, VALUE, name="amount", threshold=2.0),
        score_histogram(SCORE, label=LABEL, threshold=0.4),
        score_histogram(SCORE),
        training_curves({"train": [(0, 2.0), (10, 1.0)], "validation": [(0, 2.1), (10, 1.2)]}),
        plots.label_efficiency([(5, 0.3), (50, 0.5)], label_free=0.2),
    ]
    others = [  # what one of their axes shows is named by its ticks
        plots.field_losses({"amount": 0.5, "hour": 1.2}, {"amount": 1.0, "hour": 1.1}),
        plots.by_group([group], recall=Share(5, 10), precision=Share(0, 0)),
        plots.alert_rate(TIME_MS, SCORE > 0.4, allowed=0.01),
        plots.scores(TIME_MS, SCORE, threshold=0.4),
        plots.periods(periods),
    ]
    for figure in titled + others:
        png = io.BytesIO()
        figure.savefig(png)
        assert png.getvalue().startswith(b"\x89PNG")
        assert svg_of(figure).startswith("<svg")
        assert all(axes.get_title() and (axes.get_xlabel() or axes.get_ylabel()) for axes in figure.axes)
    assert all(axes.get_xlabel() and axes.get_ylabel() for figure in titled for axes in figure.axes)


def test_the_area_under_the_roc_curve_in_the_title_is_scikit_learns():
    from sklearn.metrics import roc_auc_score

    tied = np.round(SCORE, 2)
    assert plots.roc_curve(LABEL, tied).axes[0].get_title().endswith(f"{roc_auc_score(LABEL, tied):.3f}")


def test_the_average_precision_in_the_title_is_scikit_learns():
    from sklearn.metrics import average_precision_score

    tied = np.round(SCORE, 2)
    title = pr_curve(LABEL, tied).axes[0].get_title()
    assert title.endswith(f"{average_precision_score(LABEL, tied):.3f}")


def test_a_curve_without_any_fraud_says_what_it_needs():
    with pytest.raises(ValueError, match="none of the 3 labels is fraud"):
        pr_curve(np.zeros(3, dtype=np.int8), np.zeros(3))
