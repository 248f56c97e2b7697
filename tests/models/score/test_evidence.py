import numpy as np
from numpy.typing import NDArray

from models.masking import event_fields
from models.score.evidence import Evidence
from models.table import Column

COLUMNS = [Column("amount", "numeric", "amount"), Column("channel", "categorical", "channel")]
OWN_MEAN = [
    Column("amount", "numeric", "amount"),
    Column("customer.amount.mean.7d", "numeric", None, False, "customer", "mean", 7 * 86_400_000),
    Column("customer.count.all", "numeric", None, False, "customer", "count"),
]
N = 40_000


def weights(surprise_of_channel: NDArray[np.float64]) -> dict[str, float]:
    """Weights of the measures of amounts, a hundredth of them odd, and of a channel with these surprises."""
    random = np.random.default_rng(0)
    amount = random.normal(0, 1, N) ** 2 / 2
    amount[::100] += random.exponential(200, N // 100)
    fields = event_fields(COLUMNS)
    nats = np.stack([amount, surprise_of_channel], axis=1)
    evidence = Evidence.fit(COLUMNS, fields, random.normal(size=(N, 1)), nats, ["amount", "channel"])
    return {m.name: float(w) for m, w in zip(evidence.measures, evidence.weight, strict=True)}


def test_a_category_that_is_as_rare_as_predicted_counts_nothing() -> None:
    random = np.random.default_rng(1)
    usual, sure = np.array([0.5, 0.3, 0.2]), np.array([0.9, 0.096, 0.004])
    p = np.where(random.random((N, 1)) < 0.8, usual, sure)
    code = (random.random((N, 1)) > p.cumsum(axis=1)[:, :-1]).sum(axis=1)
    assert weights(-np.log(p[np.arange(N), code])) == {
        "amount.high": 0.0,
        "amount.low": 0.0,
        "amount.surprise": 1.0,
        "channel.surprise": 0.0,
    }


def test_the_count_of_a_busy_entity_is_context_and_a_burst_is_evidence() -> None:
    columns = [Column("count", "numeric", None, False, "customer", "count", 86_400_000)]
    random = np.random.default_rng(2)
    entity = np.tile(np.arange(200, dtype=np.uint64), N // 200)
    rate = random.lognormal(2.0, 0.5, 200)
    rate[:2] = 400.0
    by_entity = random.poisson(rate[entity.astype(np.int64)])
    bursts = random.poisson(8.0, N) + np.where(np.arange(N) % 97 == 0, random.exponential(200.0, N).astype(np.int64), 0)
    for counts, of, weight in ((by_entity, None, 1.0), (by_entity, entity, 0.0), (bursts, entity, 1.0)):
        numeric = counts.astype(np.float64)[:, None]
        evidence = Evidence.fit(columns, (), numeric, np.zeros((N, 0)), [], of)
        assert evidence.weight.tolist() == [weight]
        assert evidence.hints.tolist() == [weight > 0]


def test_of_events_with_equal_evidence_the_one_that_is_odd_in_more_ways_comes_first() -> None:
    columns = [Column(name, "numeric", name) for name in ("amount", "distance")]
    random = np.random.default_rng(3)
    numeric = np.stack([random.normal(0, 1, N), random.uniform(0, 1, N)], axis=1)
    numeric[::100, 0] += random.exponential(50, N // 100)
    evidence = Evidence.fit(columns, event_fields(columns), numeric, np.full((N, 2), np.nan), [])
    assert evidence.weight[[m.name == "distance.high" for m in evidence.measures]] == 0
    usual, odd, odder = evidence.combine(
        np.array([[0.0, 0.9999], [20.0, 0.5], [20.0, 0.9999]]), np.full((3, 2), np.nan)
    )
    assert usual < odd < odder
    assert odder - odd < 1


def test_the_value_of_an_entity_whose_own_mean_is_missing_is_compared_with_everyones_mean() -> None:
    random = np.random.default_rng(4)
    mean = random.uniform(20, 80, N)
    amount = mean * random.normal(1, 0.1, N)
    amount[::100] *= random.uniform(5, 20, N // 100)
    numeric = np.stack([amount, mean, np.full(N, 300.0)], axis=1)
    evidence = Evidence.fit(OWN_MEAN, event_fields(OWN_MEAN), numeric, np.full((N, 1), np.nan), [])
    assert evidence.weight[[m.name == "amount.above" for m in evidence.measures]] > 0.5
    rows = [[50.0, 50.0, 300.0], [50.0, np.nan, 300.0], [50.0, np.nan, np.nan], [500.0, np.nan, 300.0]]
    usual, unknown, new, odd = evidence.combine(np.array(rows), np.full((4, 1), np.nan))
    assert unknown == new
    assert abs(unknown - usual) < 1
    assert odd > usual + 3


def test_odd_last_events_support_an_odd_event_and_are_no_evidence_of_their_own() -> None:
    lasts_of = "customer", "last_value"
    columns = OWN_MEAN + [Column(f"customer.amount.last_value.{k}", "numeric", None, False, *lasts_of) for k in (1, 2)]
    random = np.random.default_rng(5)
    mean = random.uniform(20, 80, N)
    of_event, *lasts = (mean * random.normal(1, 0.1, N) for _ in range(3))
    amounts = np.stack([of_event, *lasts])
    amounts[:, ::100] *= random.uniform(5, 20, (3, N // 100))  # bursts
    amounts[0, 50::100] *= random.uniform(5, 20, N // 100)  # one odd amount
    numeric = np.stack([amounts[0], mean, np.full(N, 300.0), *amounts[1:]], axis=1)
    evidence = Evidence.fit(columns, event_fields(columns), numeric, np.full((N, 1), np.nan), [])
    last = np.array([m.kind == "last" for m in evidence.measures])
    assert last.sum() == 1
    assert evidence.weight[last].tolist() == [0.0]
    rows = [[200.0, 50.0, 50.0], [200.0, 500.0, 50.0], [200.0, 200.0, 200.0], [50.0, 500.0, 500.0], [50.0, 50.0, 50.0]]
    rows += [[200.0, np.nan, np.nan], [200.0, 200.0, np.nan]]
    full = np.array([[amount, 50.0, 300.0, *before] for amount, *before in rows])
    alone, after_one, after_two, usual_after_two, usual, first, second = evidence.combine(full, np.full((7, 1), np.nan))
    assert after_one == alone, "one odd event is chance"
    assert first == second, "as if it had none"
    assert abs(first - alone) < 0.5
    assert after_two > alone + 1
    assert abs(usual_after_two - usual) < 0.5
    restored = Evidence.of_parts(evidence.config(), evidence.arrays())
    assert restored.measures == evidence.measures
