"""Planted leaks are refused by name, and no field of a shipped stream is, however few labels there are."""

from datetime import UTC, datetime

import numpy as np
import polars as pl
import pytest
from numpy.typing import NDArray

from flows.streams import shipped
from flows.training_data import offline_table
from models.fit import leaks
from models.table import Column, Table
from pipelines.contracts.stream import DAY_MS
from pipelines.play.simulate import payments
from tests.detection.logins import logins, stream

N_FRAUDS = (5, 10, 20, 50, 200, 10_000)


def later(frame: pl.DataFrame, entity: str, what: str) -> NDArray[np.float64]:
    """Mean over the later events of an entity, NaN = there are none."""
    back = frame.select(entity, x=pl.col(what).cast(pl.Float64)).reverse()
    before = pl.int_range(pl.len()).over(entity)
    mean = (pl.col("x").cum_sum().over(entity) - pl.col("x")) / before
    return back.select(mean.fill_nan(None)).to_series().reverse().fill_null(np.nan).to_numpy()


def over_all(frame: pl.DataFrame, entity: str, how: str) -> NDArray[np.float64]:
    """Number or share of the frauds of an entity over all time."""
    made = pl.col("label").cast(pl.Float64).sum() if how == "count" else pl.col("label").cast(pl.Float64).mean()
    return frame.select(made.over(entity)).to_series().to_numpy()


@pytest.fixture(scope="module")
def frame() -> pl.DataFrame:
    return payments(seed=17, n_customers=400, n_terminals=600, days=60, start=datetime(2026, 1, 1, tzinfo=UTC))


@pytest.fixture(scope="module")
def table(frame: pl.DataFrame) -> Table:
    """The payments with all columns of the shipped stream."""
    table = offline_table(frame, shipped.load("payments"))
    assert {column.name for column in table.columns} > {"amount", "channel", "category", "country"}
    assert any(column.label_fed for column in table.columns)
    return table


def entities(frame: pl.DataFrame) -> dict[str, NDArray[np.uint32]]:
    return {name: frame[name].rank("dense").to_numpy() for name in ("customer_id", "terminal_id")}


def with_field(frame: pl.DataFrame, values: NDArray[np.floating]) -> Table:
    """The fields of the payments with a field called `planted`."""
    numeric = np.stack([frame["amount"].to_numpy(), values.astype(float)], axis=1)
    columns = tuple(Column(name, "numeric", name) for name in ("amount", "planted"))
    return Table(columns, numeric, np.zeros((len(frame), 0), np.uint64), frame["time"].dt.epoch("ms").to_numpy(), {})


def some_known(frame: pl.DataFrame, n_frauds: int, seed: int) -> NDArray[np.bool_]:
    """Events of random customers, as many as it takes for some number of frauds."""
    customer = frame["customer_id"].rank("dense").to_numpy() - 1
    frauds = np.bincount(customer, frame["label"].to_numpy())
    order = np.random.default_rng((seed, n_frauds)).permutation(len(frauds))
    return np.isin(customer, order[: int(np.searchsorted(np.cumsum(frauds[order]), n_frauds)) + 1])


PLANTED = {
    "copy": lambda frame, random: frame["label"].to_numpy(),
    "negated": lambda frame, random: 1 - frame["label"].to_numpy(),
    "99 % copy": lambda frame, random: np.where(
        random.random(len(frame)) < 0.01, 1 - frame["label"].to_numpy(), frame["label"].to_numpy()
    ),
    "blurred": lambda frame, random: frame["label"].to_numpy() + 0.05 * random.normal(size=len(frame)),
    "missing": lambda frame, random: np.where(frame["label"].to_numpy() == 1, np.nan, random.random(len(frame))),
    "only frauds": lambda frame, random: np.where(frame["label"].to_numpy() == 1, random.random(len(frame)), np.nan),
    "row number": lambda frame, random: np.arange(len(frame)),
    "frauds last": lambda frame, random: np.argsort(np.lexsort((np.arange(len(frame)), frame["label"].to_numpy()))),
    "customer's frauds": lambda frame, random: over_all(frame, "customer_id", "count"),
    "customer's rate": lambda frame, random: over_all(frame, "customer_id", "share"),
    "terminal's frauds": lambda frame, random: over_all(frame, "terminal_id", "count"),
    "terminal's rate": lambda frame, random: over_all(frame, "terminal_id", "share"),
    "customer's later rate": lambda frame, random: later(frame, "customer_id", "label"),
    "terminal's later rate": lambda frame, random: later(frame, "terminal_id", "label"),
    "customer's later amounts": lambda frame, random: later(frame, "customer_id", "amount"),
}


@pytest.mark.parametrize("kind", PLANTED)
def test_a_planted_leak_is_refused_by_name(frame: pl.DataFrame, kind: str) -> None:
    values = np.asarray(PLANTED[kind](frame, np.random.default_rng(0)), float)
    early = frame.slice(0, int(len(frame) * 0.75))  # aggregates know what comes after the training period
    label, known = early["label"].to_numpy().astype(np.int8), np.ones(len(early), bool)
    with pytest.raises(leaks.LeakError, match=r"(?s)- planted: .*Delete planted from \[fields\]") as raised:
        leaks.refuse(with_field(early, values[: len(early)]), label=label, known=known, entities=entities(early))
    assert [leak.field for leak in raised.value.leaks] == ["planted"]


@pytest.mark.parametrize("kind", ["copy", "negated", "missing", "only frauds"])
@pytest.mark.parametrize("n_frauds", [20, 50, 200])
def test_few_labels_are_enough_for_a_copy(frame: pl.DataFrame, kind: str, n_frauds: int) -> None:
    table = with_field(frame, np.asarray(PLANTED[kind](frame, np.random.default_rng(0)), float))
    label, known = frame["label"].to_numpy().astype(np.int8), some_known(frame, n_frauds, 0)
    assert [leak.field for leak in leaks.find(table, label=label, known=known, entities=entities(frame))] == ["planted"]


def test_a_category_that_copies_the_label_and_one_that_is_an_id_are_refused(frame: pl.DataFrame) -> None:
    label, n = frame["label"].to_numpy().astype(np.int8), len(frame)
    status = np.where(label == 1, np.random.default_rng(0).integers(3, 6, n), np.arange(n) % 2 + 1)
    columns = tuple(Column(name, "categorical", name) for name in ("status", "case"))
    codes = np.stack([status, np.arange(n) + 1], axis=1).astype(np.uint64)
    table = Table(columns, np.zeros((n, 0)), codes, frame["time"].dt.epoch("ms").to_numpy(), {})
    found = leaks.find(table, label=label, known=np.ones(n, bool))
    assert [leak.field for leak in found] == ["status", "case"]


@pytest.mark.parametrize("only_frauds", [False, True])
def test_no_field_of_the_shipped_payments_is_refused_at_any_number_of_labels(
    frame: pl.DataFrame, table: Table, only_frauds: bool
) -> None:
    label = frame["label"].to_numpy().astype(np.int8)
    for n_frauds in N_FRAUDS:
        known = some_known(frame, n_frauds, 1)
        told = np.where(known, label, 0).astype(np.int8)
        everywhere = np.ones(len(frame), bool) if only_frauds else known
        assert leaks.find(table, label=told, known=everywhere, entities=entities(frame)) == []


@pytest.mark.parametrize("entity", ["customer_id", "terminal_id"])
def test_an_attribute_of_the_one_entity_with_known_frauds_is_no_leak(frame: pl.DataFrame, entity: str) -> None:
    label, one = frame["label"].to_numpy(), frame[entity].rank("dense").to_numpy()
    most = int(np.argmax(np.bincount(one, label)))
    attribute = np.random.default_rng(0).random(one.max() + 1)[one]
    told, known = (label * (one == most)).astype(np.int8), np.ones(len(frame), bool)
    assert told.sum() >= 5
    assert leaks.find(with_field(frame, attribute), label=told, known=known, entities=entities(frame)) == []


@pytest.mark.parametrize("kind", [1, 2, 3])
def test_strong_columns_of_logins_are_no_leaks(kind: int) -> None:
    frame = logins(seed=3)
    frame = frame.filter(pl.col("kind").is_in([0, kind]))
    label = (frame["kind"].to_numpy() == kind).astype(np.int8)
    table = offline_table(frame, stream())
    assert leaks.find(table, label=label, known=np.ones(len(frame), bool)) == []


def test_all_large_amounts_may_be_frauds() -> None:
    random, n = np.random.default_rng(1), 20_000
    label = (random.random(n) < 0.01).astype(np.int8)
    amount = random.lognormal(3, 0.5, n) * np.where(label == 1, 60, 1)
    columns = (Column("amount", "numeric", "amount"),)
    table = Table(columns, amount[:, None], np.zeros((n, 0), np.uint64), np.arange(n) * DAY_MS // 300, {})
    assert leaks.find(table, label=label, known=np.ones(n, bool)) == []


@pytest.mark.parametrize("missing", [False, True])
def test_a_blurred_copy_is_the_strongest_field_and_none_of_the_payments_is_strong(
    frame: pl.DataFrame, table: Table, missing: bool
) -> None:
    random, label = np.random.default_rng(0), frame["label"].to_numpy().astype(np.int8)
    hint = random.normal(size=len(frame)) + np.where(label == 1, np.nan if missing else 6.0, 0.0)
    found = leaks.strongest(with_field(frame, hint), label, ["amount", "planted"])
    assert found is not None
    assert found.field == "planted"
    assert found.average_precision > 0.9
    honest = leaks.strongest(table, label, ["amount", "channel", "category", "country"])
    assert honest is not None
    assert honest.average_precision < 0.3


def test_a_category_may_be_the_strongest_field_and_without_frauds_there_is_none(frame: pl.DataFrame) -> None:
    n, label = len(frame), frame["label"].to_numpy().astype(np.int8)
    codes = (np.arange(n) % 5 + 5 * label + 1).astype(np.uint64)
    table = Table((Column("status", "categorical", "status"),), np.zeros((n, 0)), codes[:, None], np.arange(n), {})
    found = leaks.strongest(table, label, ["status"])
    assert found is not None
    assert found.average_precision == 1.0
    assert leaks.strongest(table, label, ["other"]) is None
    first = int(np.flatnonzero(label)[0])
    assert leaks.strongest(table, label * (np.arange(n) <= first), ["status"]) is None  # one fraud
    assert leaks.strongest(table, np.maximum(label, np.arange(n) < 100), ["status"]) is not None
    assert (
        leaks.strongest(table, (np.arange(n) < 100).astype(np.int8), ["status"]) is None
    )  # only frauds before the cut


def test_numbers_about_the_past_of_an_entity_are_no_leaks(frame: pl.DataFrame) -> None:
    label, known = frame["label"].to_numpy().astype(np.int8), np.ones(len(frame), bool)
    for entity in ("customer_id", "terminal_id"):
        before = pl.int_range(pl.len()).over(entity)
        for what in ("label", "amount"):
            total = pl.col(what).cast(pl.Float64).cum_sum().over(entity) - pl.col(what)
            for past in (total, total / before, before):
                values = frame.select(past.fill_nan(None).cast(pl.Float64)).to_series().fill_null(np.nan).to_numpy()
                found = leaks.find(with_field(frame, values), label=label, known=known, entities=entities(frame))
                assert found == [], (entity, what, past)


def test_a_count_beside_a_flag_that_is_nearly_always_set_is_no_leak(frame: pl.DataFrame) -> None:
    random, n = np.random.default_rng(2), len(frame)
    columns = tuple(Column(name, "numeric", name) for name in ("items", "domestic"))
    numeric = np.stack([random.poisson(0.2, n), random.random(n) < 0.99], axis=1).astype(float)
    table = Table(columns, numeric, np.zeros((n, 0), np.uint64), frame["time"].dt.epoch("ms").to_numpy(), {})
    label, known = frame["label"].to_numpy().astype(np.int8), np.ones(n, bool)
    assert leaks.find(table, label=label, known=known, entities=entities(frame)) == []
