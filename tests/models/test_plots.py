import io

import numpy as np
import pytest

from models.plots import pr_curve, precision_at_budget, score_histogram, training_curves

RNG = np.random.default_rng(7)
LABEL = (RNG.random(5_000) < 0.01).astype(np.int8)
SCORE = np.clip(RNG.beta(1, 12, 5_000) + 0.5 * LABEL * RNG.random(5_000), 0.0, 1.0)


def test_every_plot_can_be_drawn_and_names_its_axes():
    figures = [
        pr_curve(LABEL, SCORE, threshold=0.4),
        precision_at_budget(LABEL, SCORE),
        score_histogram(SCORE, label=LABEL, threshold=0.4),
        score_histogram(SCORE),
        training_curves({"train": [(0, 2.0), (10, 1.0)], "validation": [(0, 2.1), (10, 1.2)]}),
    ]
    for figure in figures:
        png = io.BytesIO()
        figure.savefig(png)
        assert png.getvalue().startswith(b"\x89PNG")
        assert all(axes.get_xlabel() and axes.get_ylabel() and axes.get_title() for axes in figure.axes)


def test_the_average_precision_in_the_title_is_scikit_learns():
    from sklearn.metrics import average_precision_score

    tied = np.round(SCORE, 2)
    title = pr_curve(LABEL, tied).axes[0].get_title()
    assert title.endswith(f"{average_precision_score(LABEL, tied):.3f}")


def test_a_curve_without_any_fraud_says_what_it_needs():
    with pytest.raises(ValueError, match="none of the 3 labels is fraud"):
        pr_curve(np.zeros(3, dtype=np.int8), np.zeros(3))
