"""A field that moves is named, one that only breaks with the others, too; undisturbed days are not."""

from functools import cache

import numpy as np
import pytest

from models.drift import Drift, TooFewEventsError, drift
from models.fit.pretrain import PretrainConfig, Pretrained, pretrain
from models.table import Column, Table

DAY_MS = 86_400_000

A_DAY, DAYS = 600, 20
COLUMNS = (
    Column("amount", "numeric", "amount"),
    Column("c.amount.ratio.7d", "numeric", "amount", False, "c", "ratio", 604_800_000),
    Column("hour", "numeric", None, False, None, "hour"),
    Column("country", "categorical", "country"),
    Column("city", "categorical", "city"),
)


def events(seed: int, n: int) -> Table:
    """Each country has its cities and its amounts."""
    random = np.random.default_rng(seed)
    country = random.integers(1, 4, n)
    amount = country * 20 * np.exp(0.2 * random.normal(size=n))
    numeric = np.stack([amount, amount / 40, random.uniform(0, 24, n)], axis=1)
    categorical = np.stack([country, country * 10 + random.integers(0, 2, n)], axis=1).astype(np.uint64)
    return Table(
        COLUMNS, numeric, categorical, np.arange(n) * (DAY_MS // A_DAY), {}, np.arange(n, dtype=np.uint64) % 50
    )


@cache
def past() -> tuple[Table, Pretrained]:
    table = events(1, A_DAY * DAYS)
    config = PretrainConfig(width=32, max_steps=200, min_steps=200, batch=512)
    return table, pretrain(table, config=config, seed=1)


def of(now: Table) -> Drift:
    table, model = past()
    return drift(model.expectation, model.rules.coding, model.score, table, now, width_ms=DAY_MS)


def changed(now: Table, at: int, values: np.ndarray) -> Table:
    numeric, categorical = np.array(now.numeric[:]), np.array(now.categorical[:])
    (numeric if at < 3 else categorical)[:, at if at < 3 else at - 3] = values
    return Table(COLUMNS, numeric, categorical, now.time_ms, {}, now.entity)


@pytest.mark.parametrize("seed", range(20, 30))
def test_an_undisturbed_day_raises_no_alarm(seed: int) -> None:
    found = of(events(seed, A_DAY))
    assert not found.has_drifted, found.moved[0]
    assert (found.events, found.reference) == (A_DAY, 14 * A_DAY)


def test_the_field_that_moved_is_named_first() -> None:
    now = events(40, A_DAY)
    amount, country = np.array(now.numeric[:])[:, 0], np.array(now.categorical[:])[:, 0]
    random = np.random.default_rng(0)
    for at, name, values in (
        (0, "amount", amount * 2),
        (0, "amount", np.where(random.random(A_DAY) < 0.3, np.nan, amount)),
        (2, "hour", np.full(A_DAY, 3.0)),
        (3, "country", np.where(random.random(A_DAY) < 0.3, 77, country)),
        (3, "country", np.zeros(A_DAY)),
    ):
        found = of(changed(now, at, values))
        assert found.fields[0] == name, (name, found.moved)


def test_a_field_whose_values_are_usual_but_no_longer_fit_the_others_is_found_by_its_surprise() -> None:
    now = events(41, A_DAY)
    city = np.random.default_rng(0).permutation(np.array(now.categorical[:])[:, 1])
    found = of(changed(now, 4, city))
    moved = {one.name: one for one in found.moved}
    assert moved["city"].stability < moved["city"].stability_limit
    assert moved["city"].surprise is not None
    assert moved["city"].surprise > moved["city"].surprise_limit
    assert "city" in found.fields


def test_one_odd_day_in_the_reference_hides_nothing() -> None:
    table, model = past()
    odd = changed(events(50, A_DAY), 0, np.full(A_DAY, np.nan))
    at = 15 * A_DAY
    numeric = np.array(table.numeric[:])
    numeric[at : at + A_DAY] = odd.numeric[:]
    reference = Table(COLUMNS, numeric, table.categorical, table.time_ms, {}, table.entity)
    now = events(51, A_DAY)
    now = changed(now, 0, np.array(now.numeric[:])[:, 0] * 2)
    found = drift(model.expectation, model.rules.coding, model.score, reference, now, width_ms=DAY_MS)
    assert found.fields[0] == "amount", found.moved[0]


def test_columns_in_another_order_or_more_of_them_are_read_by_name() -> None:
    _, model = past()
    now = events(52, A_DAY)
    more = (Column("new", "numeric", "new"), *COLUMNS)
    wider = now.arranged(more)
    assert wider.d_num == 4
    found = drift(
        model.expectation,
        model.rules.coding,
        lambda rows: model.score(rows.arranged(COLUMNS)),
        past()[0].arranged(more),
        wider,
        width_ms=DAY_MS,
    )
    assert not found.has_drifted, found.moved[0]


def test_too_few_events_are_no_evidence() -> None:
    table, model = past()
    for n_past, n_now in ((A_DAY * DAYS, 499), (6 * A_DAY, A_DAY)):
        before, now = table.take(slice(0, n_past)), events(2, n_now)
        with pytest.raises(TooFewEventsError, match="to tell a drift from chance"):
            drift(model.expectation, model.rules.coding, model.score, before, now, width_ms=DAY_MS)
