import numpy as np

from models.score.surprise import SurpriseScale


def test_a_field_of_pure_noise_does_not_dilute_one_with_outliers() -> None:
    random = np.random.default_rng(0)
    nats = 0.5 * random.normal(size=(40_000, 4)) ** 2
    odd = random.random(40_000) < 0.005
    nats[odd, 0] = random.uniform(8, 60, odd.sum())
    scale = SurpriseScale.fit(nats)
    combined = scale.combine(nats)
    top = np.argsort(-combined)[: odd.sum()]
    assert odd[top].mean() > 0.9


def test_a_surprise_that_drifts_with_time_is_no_evidence() -> None:
    random = np.random.default_rng(0)
    nats = 0.5 * random.normal(size=(40_000, 2)) ** 2
    nats[30_000:, 1] *= 8.0
    scale = SurpriseScale.fit(nats)
    assert scale.combine(np.array([[20.0, 0.1]]))[0] > scale.combine(np.array([[0.1, 20.0]]))[0] + 3


def test_the_extremes_of_a_bounded_field_are_no_evidence() -> None:
    random = np.random.default_rng(0)
    nats = 0.5 * random.normal(size=(40_000, 2)) ** 2
    nats[:, 1] = 0.1 * (random.integers(0, 7, 40_000) - 3) ** 2
    scale = SurpriseScale.fit(nats)
    assert scale.combine(np.array([[0.1, 0.9]]))[0] < 0.1


def test_a_field_that_is_mostly_missing_keeps_its_scale() -> None:
    random = np.random.default_rng(0)
    nats = 0.5 * random.normal(size=(40_000, 2)) ** 2
    nats[random.random(40_000) < 0.005, 0] = 20.0
    whole = SurpriseScale.fit(nats)
    nats[random.random(40_000) < 0.9, 0] = np.nan
    thinned = SurpriseScale.fit(nats)
    row = np.array([[20.0, 0.1], [np.nan, 0.1]])
    assert whole.combine(row)[0] > 5
    assert thinned.combine(row)[0] > 0.6 * whole.combine(row)[0]
    np.testing.assert_allclose(thinned.point[0], whole.point[0], rtol=0.3)
    assert thinned.combine(row)[1] < 0.1


def test_missing_fields_add_nothing_and_more_surprise_never_scores_less() -> None:
    random = np.random.default_rng(0)
    scale = SurpriseScale.fit(0.5 * random.normal(size=(5_000, 2)) ** 2)
    ladder = np.stack([np.linspace(0, 100, 500), np.full(500, np.nan)], axis=1)
    combined = scale.combine(ladder)
    assert combined[0] == 0
    assert (np.diff(combined) >= 0).all()
