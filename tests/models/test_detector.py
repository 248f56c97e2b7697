import numpy as np
import pytest
from sklearn.metrics import roc_auc_score
from sklearn.utils.estimator_checks import parametrize_with_checks

from models.detector import TableDetector


@pytest.mark.filterwarnings("ignore")
@parametrize_with_checks([TableDetector(n_trees=5, random_state=0)])
def test_it_is_a_scikit_learn_estimator(estimator, check) -> None:
    check(estimator)


@pytest.fixture(scope="module")
def rows() -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    x = random.normal(size=(1500, 4))
    x[:, 1] = x[:, 0] + 0.1 * random.normal(size=1500)
    y = (random.random(1500) < 0.04).astype(int)
    x[y == 1, 1] *= -1.0
    x[y == 1, 2] += 3.0
    return x, y


def test_it_finds_rows_that_break_a_relation_without_labels_and_better_with_them(rows) -> None:
    x, y = rows
    free = TableDetector(contamination=0.05, random_state=0).fit(x)
    labelled = TableDetector(contamination=0.05, random_state=0).fit(x, y)
    free_roc, labelled_roc = (roc_auc_score(y, m.anomaly_score(x)) for m in (free, labelled))
    assert free_roc > 0.85
    assert labelled_roc > free_roc
    np.testing.assert_array_equal(free.score_samples(x), -free.anomaly_score(x))
    assert ((free.decision_function(x) < 0) == (free.predict(x) == -1)).all()
    assert (free.predict(x) == -1).mean() <= 0.05 + 1e-9
    np.testing.assert_allclose(labelled.predict_proba(x).sum(axis=1), 1.0)


@pytest.mark.parametrize("n_labels", [1, 3])
def test_few_anomalies_in_a_labelled_table_do_not_make_scores_equal(rows, n_labels: int) -> None:
    x, truth = rows
    kept = np.sort(np.concatenate([np.flatnonzero(truth == 0), np.flatnonzero(truth == 1)[:n_labels]]))
    detector = TableDetector(contamination=0.05, random_state=0).fit(x[kept], truth[kept])
    scores = detector.anomaly_score(x[kept])
    assert len(np.unique(scores)) > 0.9 * len(kept)
    assert (detector.predict(x[kept]) == -1).mean() == pytest.approx(0.05, abs=0.005)


def test_contamination_out_of_range_is_refused(rows) -> None:
    with pytest.raises(ValueError, match=r"contamination is 0\.9; it must be greater than 0"):
        TableDetector(contamination=0.9).fit(rows[0])
