import numpy as np
from numpy.typing import NDArray

from models.masking import event_fields
from models.score.evidence import Evidence
from models.table import Column

COLUMNS = [Column("amount", "numeric", "amount"), Column("channel", "categorical", "channel")]
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
