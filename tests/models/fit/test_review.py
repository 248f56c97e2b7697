import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from models.fit.review import MOST, by_entity, events_per_label, silent_columns
from models.table import Column


def reviewed(random_share: float, *, alerts: float = 0.01, slope: float = 2.0, n: int = 50_000):
    """Evidence of events, which are frauds and which have a label: those with the highest evidence and random ones."""
    random = np.random.default_rng(0)
    evidence = random.normal(size=n)
    fraud = random.random(n) < 1 / (1 + np.exp(4 - slope * evidence))
    known = (evidence > np.quantile(evidence, 1 - alerts)) | (random.random(n) < random_share)
    n_known = int(known.sum())
    weight = events_per_label(evidence[known], np.ones(n_known), evidence[~known], n - n_known)
    return evidence, fraud, known, weight


@pytest.mark.parametrize(("share", "slope"), [(0.05, 2.0), (0.2, 0.5), (0.05, 0.2)])
def test_weighted_labels_tell_how_good_a_score_is_on_all_events_where_alerts_were_reviewed(
    share: float, slope: float
) -> None:
    evidence, fraud, known, weight = reviewed(share, slope=slope)
    everyone = average_precision_score(fraud, evidence)
    as_they_are = average_precision_score(fraud[known], evidence[known])
    weighted = average_precision_score(fraud[known], evidence[known], sample_weight=weight)
    assert as_they_are > 1.2 * everyone
    assert weighted == pytest.approx(everyone, rel=0.15)
    assert np.average(evidence[known], weights=weight) == pytest.approx(evidence.mean(), abs=0.05)


def test_no_label_stands_for_more_than_the_most_or_for_less_than_one_event() -> None:
    _, _, _, weight = reviewed(0.001)
    assert (weight.min(), weight.max()) == (1.0, MOST)


def test_random_labels_have_nearly_equal_weights() -> None:
    _, _, _, weight = reviewed(0.05, alerts=0.0)
    low, high = np.quantile(weight, [0.05, 0.95])
    assert high < 1.5 * low


@pytest.mark.parametrize(("of_entities", "expected"), [(True, True), (False, False)])
def test_labels_of_whole_entities_are_told_from_labels_of_events(of_entities: bool, expected: bool) -> None:
    random = np.random.default_rng(0)
    entity = random.integers(0, 100, 5000).astype(np.uint64)
    known = entity < 5 if of_entities else random.random(5000) < 0.05
    assert by_entity(known, entity) is expected


def test_entities_with_one_event_do_not_make_labels_those_of_entities() -> None:
    random = np.random.default_rng(0)
    entity = random.integers(0, 5000, 5000).astype(np.uint64)  # mostly one or two events
    assert by_entity(random.random(5000) < 0.02, entity) is False
    assert by_entity(random.random(5000) < 0.02, np.arange(5000).astype(np.uint64)) is False


def test_columns_are_silent_only_if_no_column_of_their_entity_says_anything() -> None:
    columns = [
        Column("amount", "numeric", "amount"),
        Column("card.since_fraud", "numeric", None, True, "card", "since_fraud"),
        Column("card.fraud_run", "numeric", None, True, "card", "fraud_run"),
        Column("shop.since_fraud", "numeric", None, True, "shop", "since_fraud"),
        Column("shop.labelled_count.7d", "numeric", None, True, "shop", "labelled_count"),
    ]
    rows = np.array([[5.0, np.nan, 0.0, np.nan, 3.0], [5.0, np.nan, 0.0, np.nan, 0.0]])
    assert silent_columns(columns, rows).tolist() == [1, 2]
