import numpy as np
from sklearn.metrics import roc_auc_score

from models.baselines import compare, isolation_forest


def test_the_forest_never_reads_label_fed_columns(trained) -> None:
    small, test = trained.table.take(slice(0, 2000)), trained.test.take(slice(0, 500))
    fed = test.numeric.copy()
    fed[:, 4] = 0.9
    valid = np.arange(1800, 2000)
    args = {"label": trained.label[:2000], "valid": valid, "seed": 0, "n_trees": 20}
    plain = isolation_forest(small, test=test, **args)
    other = isolation_forest(
        small, test=type(test)(test.columns, fed, test.categorical, test.time_ms, test.category_names), **args
    )
    np.testing.assert_array_equal(plain, other)


def test_without_labels_only_the_forest_is_compared_and_with_them_both_rank_frauds_high(trained) -> None:
    none = np.zeros(len(trained.table), bool)
    assert set(compare(trained.table, label=trained.label, known=none, test=trained.test, seed=0)) == {
        "isolation_forest"
    }
    both = compare(trained.table, label=trained.label, known=~none, test=trained.test, seed=0)
    assert roc_auc_score(trained.truth, both["logistic_regression"]) > 0.9
    assert roc_auc_score(trained.truth, both["isolation_forest"]) > 0.6
