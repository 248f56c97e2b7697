import json

import numpy as np

from models.artifact import load


def test_an_odd_amount_is_the_first_reason_with_its_expected_value_and_a_lower_score(saved) -> None:
    for name in ("day_zero", "labelled"):
        served = load(saved[name][0])
        numeric = np.array([[300.0, 60.0, 5.0, 2.0, 0.0]])
        categorical = np.array([[22]], np.uint64)
        (explanation,) = served.explain(numeric, categorical)
        reason = explanation.reasons[0]
        assert (reason.field, reason.actual) == ("amount", 300.0)
        assert isinstance(reason.expected, float)
        assert 40 < reason.expected < 80
        assert reason.surprise > 8
        score = served.score(numeric, categorical)[0]
        assert reason.score_if_expected < score
        assert explanation.score_if_all_expected < score


def test_a_terminal_with_a_fraud_rate_is_named_by_its_history_column(saved) -> None:
    served = load(saved["labelled"][0])
    row = np.array([[60.0, 60.0, 1.0, 2.0, 0.8]]), np.array([[22]], np.uint64)
    (explanation,) = served.explain(*row)
    reason = explanation.reasons[0]
    assert (reason.field, reason.actual, reason.expected) == ("terminal_id.fraud_rate.7d", 0.8, 0.0)
    assert reason.score_if_expected < served.score(*row)[0]


def test_categories_are_shown_as_text_and_the_whole_is_json(saved) -> None:
    served = load(saved["day_zero"][0])
    (explanation,) = served.explain(np.array([[60.0, 60.0, 1.0, 2.0, 0.0]]), np.array([[33]], np.uint64))
    by_field = {r.field: r for r in explanation.reasons}
    assert json.loads(json.dumps(explanation.as_json()))["score_if_all_expected"] >= 0
    if "channel" in by_field:
        assert (by_field["channel"].actual, by_field["channel"].expected) == ("phone", "shop")


def test_explaining_rows_together_is_explaining_each_alone(trained, saved) -> None:
    served = load(saved["labelled"][0])
    numeric, categorical = trained.test.numeric[:20], trained.test.categorical[:20]
    together = served.explain(numeric, categorical)
    for i, explanation in enumerate(together):
        (alone,) = served.explain(numeric[i : i + 1], categorical[i : i + 1])
        assert [r.field for r in alone.reasons] == [r.field for r in explanation.reasons]
        assert abs(alone.score_if_all_expected - explanation.score_if_all_expected) < 1e-5
