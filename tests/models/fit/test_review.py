import numpy as np
import pytest

from models.fit.review import MOST, by_entity, events_per_label


def reviewed(random_share: float, *, alerts: float = 0.01, n: int = 50_000):
    """Evidence of events, which are frauds and which have a label: those with the highest evidence and random ones."""
    random = np.random.default_rng(0)
    evidence = random.normal(size=n)
    fraud = random.random(n) < 1 / (1 + np.exp(6 - 2 * evidence))
    known = (evidence > np.quantile(evidence, 1 - alerts)) | (random.random(n) < random_share)
    weight = events_per_label(evidence[known], fraud[known], np.ones(int(known.sum())), evidence[~known], n)
    return evidence, fraud, known, weight


def test_weighted_labels_represent_all_events_where_alerts_were_reviewed() -> None:
    evidence, fraud, known, weight = reviewed(0.02)
    legitimate = ~fraud[known]
    everyone = evidence[~fraud].mean()
    assert evidence[known][legitimate].mean() > everyone + 0.3
    assert np.average(evidence[known][legitimate], weights=weight[legitimate]) == pytest.approx(everyone, abs=0.1)


def test_no_label_stands_for_more_than_the_most_or_for_less_than_one_event() -> None:
    _, _, _, weight = reviewed(0.001)
    assert (weight.min(), weight.max()) == (1.0, MOST)


def test_random_labels_are_hardly_weighted() -> None:
    _, _, _, weight = reviewed(0.05, alerts=0.0)
    assert np.quantile(weight, 0.9) < 1.5


@pytest.mark.parametrize(("of_entities", "expected"), [(True, True), (False, False)])
def test_labels_of_whole_entities_are_told_from_labels_of_events(of_entities: bool, expected: bool) -> None:
    random = np.random.default_rng(0)
    entity = random.integers(0, 100, 5000).astype(np.uint64)
    known = entity < 5 if of_entities else random.random(5000) < 0.05
    assert by_entity(known, entity) is expected
