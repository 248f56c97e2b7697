"""Past events to try out: a synthetic stream of card payments with fraud, or a folder of Parquet and CSV files."""

from datetime import datetime
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pipelines.contracts.stream import DAY_MS, HOUR_MS, Field, Stream
from pipelines.errors import StreamFileError
from pipelines.play import cells
from pipelines.play.table_file import TableFile, read_table

_COUNTRIES = np.array(["NL", "BE", "DE", "FR", "GB", "ES", "PL", "US"])
_COUNTRY_SHARES = np.array([0.34, 0.2, 0.16, 0.1, 0.08, 0.05, 0.04, 0.03])
_CATEGORIES = np.array(["grocery", "fuel", "restaurant", "fashion", "electronics", "travel", "games", "pharmacy"])
_CATEGORY_SHARES = np.array([0.28, 0.1, 0.2, 0.12, 0.08, 0.06, 0.08, 0.08])
_CATEGORY_PRICE = np.array([0.9, 1.3, 0.8, 1.6, 3.5, 4.5, 0.5, 0.6])
_ONLINE_SHARE = np.array([0.05, 0.0, 0.1, 0.45, 0.6, 0.75, 0.95, 0.15])
_CHANNELS = np.array(["chip", "contactless", "online"])
_MISSING_SHARES = {"channel": 0.01, "category": 0.02, "country": 0.03}
_PAYMENTS_PER_DAY = 2.0

# Shares of all payments that are fraud of each kind; together about 1 %.
_ODD_AMOUNT_SHARE = 0.003
_TERMINAL_SHARE = 0.0035
_CUSTOMER_SHARE = 0.0035


def payments(*, seed: int, n_customers: int, n_terminals: int, days: int, start: datetime) -> pl.DataFrame:
    """Synthetic card payments, about two a day per customer, about 1 % of them fraud.

    Customers have habits (spending, favourite terminals, hours, channel); amounts drift up, weekends differ. Fraud is
    of three kinds: an amount far out of the customer's habit; a terminal that skims cards for two to four weeks; a
    customer whose card others use for some days, faster, larger, at new terminals, often abroad and online. Many
    frauds look ordinary by themselves, and some ordinary payments look odd.

    Args:
        start: time of the first day, with time zone.

    Returns:
        Columns `event_id, time, customer_id, terminal_id, amount, channel, category, country, label`, by rising time.

    Example:
        >>> from datetime import UTC
        >>> frame = payments(seed=1, n_customers=50, n_terminals=100, days=10, start=datetime(2026, 1, 1, tzinfo=UTC))
        >>> frame.columns[:3], 500 < frame.height < 1500
        (['event_id', 'time', 'customer_id'], True)
    """
    if start.tzinfo is None:
        raise ValueError("start has no time zone; give one, e.g. datetime(2026, 1, 1, tzinfo=UTC)")
    rng = np.random.default_rng(seed)
    town = _Town(rng, n_customers, n_terminals)
    usual = _usual(rng, town, days)
    _odd_amounts(rng, town, usual)
    _skimmed_terminals(rng, usual, n_terminals, days)
    stolen = _stolen_cards(rng, town, days, round(_CUSTOMER_SHARE * len(usual["time_ms"])))
    columns = {name: np.concatenate([usual[name], stolen[name]]) for name in usual}
    columns["amount"] *= 1 + 0.001 * columns["time_ms"] / DAY_MS  # prices drift
    return _frame(rng, columns, town, seed, start)


Columns = dict[str, NDArray]


class _Town:
    """Who pays where: customers with habits, terminals of a kind and a country."""

    def __init__(self, rng: np.random.Generator, n_customers: int, n_terminals: int) -> None:
        self.terminal_country = rng.choice(len(_COUNTRIES), n_terminals, p=_COUNTRY_SHARES)
        self.terminal_category = rng.choice(len(_CATEGORIES), n_terminals, p=_CATEGORY_SHARES)
        self.terminal_price = _CATEGORY_PRICE[self.terminal_category] * rng.lognormal(0, 0.25, n_terminals)
        popularity = rng.pareto(1.5, n_terminals) + 0.2
        self.country = rng.choice(len(_COUNTRIES), n_customers, p=_COUNTRY_SHARES)
        self.spending = rng.lognormal(3.2, 0.5, n_customers)
        self.spread = rng.uniform(0.25, 0.6, n_customers)
        self.rate = rng.gamma(2.5, _PAYMENTS_PER_DAY / 2.5, n_customers)
        self.hour = np.where(rng.random(n_customers) < 0.12, 1.5, rng.normal(15, 2.5, n_customers))
        self.online = rng.beta(1.2, 2.5, n_customers)
        self.favourites = np.empty((n_customers, 12), np.int64)
        for country in range(len(_COUNTRIES)):
            here = np.flatnonzero(self.country == country)
            weight = popularity * np.where(self.terminal_country == country, 1.0, 0.03)
            self.favourites[here] = rng.choice(n_terminals, (len(here), 12), p=weight / weight.sum())


def _usual(rng: np.random.Generator, town: _Town, days: int) -> Columns:
    """What customers do of their own."""
    customer = np.repeat(np.arange(len(town.rate)), rng.poisson(town.rate * days))
    n = len(customer)
    day = rng.integers(0, days, n)
    busy = rng.random(n) < np.where(day % 7 >= 5, 0.3, 0.0)  # weekends: later, more expensive
    hour = rng.normal(town.hour[customer] + np.where(busy, 3, 0), 3.0, n) % 24
    # The first favourites are visited most; one payment in fifteen is at a new place.
    rank = np.minimum(rng.geometric(0.25, n) - 1, 11)
    terminal = town.favourites[customer, rank]
    away = rng.random(n) < 1 / 15
    terminal[away] = rng.integers(0, len(town.terminal_price), int(away.sum()))
    amount = town.spending[customer] * town.terminal_price[terminal] * rng.lognormal(0, town.spread[customer])
    splurge = rng.random(n) < 0.004
    amount[splurge] *= rng.uniform(3, 6, int(splurge.sum()))
    return {
        "time_ms": (day * DAY_MS + hour * HOUR_MS + rng.integers(0, 1000, n)).astype(np.int64),
        "customer": customer,
        "terminal": terminal,
        "amount": amount * np.where(busy, 1.2, 1.0),
        "online": rng.random(n)
        < (0.35 * town.online[customer] + 0.65 * _ONLINE_SHARE[town.terminal_category[terminal]]),
        "label": np.zeros(n, np.int8),
    }


def _odd_amounts(rng: np.random.Generator, town: _Town, usual: Columns) -> None:
    """A usual payment with an amount out of the customer's habit."""
    n = len(usual["time_ms"])
    odd = rng.random(n) < _ODD_AMOUNT_SHARE
    factor = rng.lognormal(1.9, 0.35, int(odd.sum()))
    usual["amount"][odd] = np.maximum(usual["amount"][odd], town.spending[usual["customer"][odd]]) * factor
    usual["label"][odd] = 1


def _skimmed_terminals(rng: np.random.Generator, usual: Columns, n_terminals: int, days: int) -> None:
    """Terminals where, for two to four weeks, most payments are by stolen cards."""
    n = len(usual["time_ms"])
    visits = np.bincount(usual["terminal"], minlength=n_terminals) / days
    wanted, got = round(_TERMINAL_SHARE * n), 0
    day = usual["time_ms"] / DAY_MS
    for terminal in rng.permutation(np.flatnonzero((visits > 0.3) & (visits < 8))):
        if got >= wanted:
            return
        first = rng.uniform(-14, days)
        share = rng.uniform(0.5, 0.9)
        at = np.flatnonzero((usual["terminal"] == terminal) & (day >= first) & (day < first + rng.uniform(14, 28)))
        hit = at[rng.random(len(at)) < share][: wanted - got]
        usual["label"][hit] = 1
        usual["amount"][hit] *= rng.uniform(0.7, 1.5, len(hit))
        got += len(hit)


def _stolen_cards(rng: np.random.Generator, town: _Town, days: int, wanted: int) -> Columns:
    """Payments of others with a customer's card, in bursts over one to four days."""
    bursts, got = [], 0
    while got < wanted:
        customer, n = int(rng.integers(len(town.rate))), min(wanted - got, int(rng.integers(3, 11)))
        first = rng.uniform(0, max(days - 1, 1))
        at = np.sort(rng.uniform(first, min(first + rng.uniform(0.5, 4), days), n))
        terminal = rng.integers(0, len(town.terminal_price), n)
        larger = rng.uniform(1.5, 5.0, n) * rng.lognormal(0, 0.3, n)
        amount = town.spending[customer] * town.terminal_price[terminal] * larger
        bursts.append((at, np.full(n, customer), terminal, amount))
        got += n
    at, customers, terminals, amounts = (
        (np.concatenate(parts) for parts in zip(*bursts, strict=True)) if bursts else (np.empty(0) for _ in range(4))
    )
    return {
        "time_ms": (at * DAY_MS).astype(np.int64),
        "customer": customers.astype(np.int64),
        "terminal": terminals.astype(np.int64),
        "amount": amounts,
        "online": rng.random(len(at)) < 0.7,
        "label": np.ones(len(at), np.int8),
    }


def _frame(rng: np.random.Generator, columns: Columns, town: _Town, seed: int, start: datetime) -> pl.DataFrame:
    order = np.argsort(columns["time_ms"], kind="stable")
    columns = {name: values[order] for name, values in columns.items()}
    n, terminal = len(order), columns["terminal"]
    contactless = (columns["amount"] < 50) & (rng.random(n) < 0.75)
    channel = np.where(columns["online"], 2, np.where(contactless, 1, 0))
    start_ms = round(start.timestamp() * 1000)
    frame = pl.DataFrame(
        {
            "event_id": [f"{seed}-{i}" for i in range(n)],
            "time": pl.Series(columns["time_ms"] + start_ms).cast(pl.Datetime("ms", "UTC")),
            "customer_id": pl.Series([f"c{i:05d}" for i in range(len(town.rate))]).gather(columns["customer"]),
            "terminal_id": pl.Series([f"t{i:05d}" for i in range(len(town.terminal_price))]).gather(terminal),
            "amount": np.maximum(np.round(columns["amount"], 2), 0.01),
            "channel": _CHANNELS[channel],
            "category": _CATEGORIES[town.terminal_category[terminal]],
            "country": _COUNTRIES[town.terminal_country[terminal]],
            "label": columns["label"],
        }
    )
    missing = {name: pl.Series(rng.random(n) < share) for name, share in _MISSING_SHARES.items()}
    return frame.with_columns(
        pl.when(~mask).then(pl.col(name)).otherwise(None).alias(name) for name, mask in missing.items()
    )


def read_folder(stream: Stream, folder: Path) -> pl.DataFrame:
    """Past events: every Parquet and CSV file of a folder, as one frame by rising event time.

    Columns go by their field names (`table_file.field_name`), so "card no" is the field card_no.

    Args:
        stream: stream with the required columns; `stream.labels.column` is the column of the truth (0 or 1).

    Returns:
        The stream's fields (event time as UTC with milliseconds) and the truth; other columns are omitted. The truth is
        null where it is unknown, which only a stream whose labels report legitimate events too allows.

    Raises:
        StreamFileError: a column is missing or has another type than the stream file names.
    """
    paths = past_files(folder)
    if not paths:
        raise StreamFileError(f"{folder} has no .parquet or .csv file; give the folder of past events")
    truth = [stream.labels.column] if stream.labels else []
    wanted = [f.name for f in stream.fields]
    parts = []
    for path in paths:
        table = read_table(path)
        frame = table.frame if path.suffix == ".parquet" else _typed(stream, table)
        there = frame.schema
        for name in (*wanted, *truth):
            if name not in there:
                fix = (
                    "add the truth (0 or 1), or name its column in [labels] of the stream file"
                    if name in truth
                    else "add the column, or remove the field from the stream file"
                )
                raise StreamFileError(f"{path.name}: column {name} is missing; {fix} (columns: {', '.join(there)})")
        for field in stream.fields:
            _check_type(path.name, field, there[field.name])
        if truth and not (there[truth[0]].is_integer() or there[truth[0]] == pl.Boolean):
            raise StreamFileError(f"{path.name}: column {truth[0]} is {there[truth[0]]}; it must be an integer, 0 or 1")
        part = frame.select(*wanted, *truth)
        time = pl.col(stream.event_time)
        stamp = pl.Datetime("ms", "UTC")
        when = (
            time.dt.cast_time_unit("ms").dt.convert_time_zone("UTC")
            if there[stream.event_time].is_temporal()
            else time.cast(stamp)
        )
        parts.append(part.with_columns(when, *(pl.col(name).cast(pl.Int8) for name in truth)).select(*wanted, *truth))
    frame = pl.concat(parts, how="vertical_relaxed").sort(stream.event_time, maintain_order=True)
    filled = truth if stream.labels and stream.labels.reports == "frauds" else []
    for name in (stream.event_id, stream.event_time, stream.key, *filled):
        if n_missing := frame[name].null_count():
            raise StreamFileError(f"{folder}: column {name} is null in {n_missing} rows; fill it or drop the rows")
    if truth and not frame[truth[0]].is_in([0, 1]).all():
        raise StreamFileError(
            f"{folder}: column {truth[0]} has values other than 0 and 1; fix them or name another column"
        )
    return frame


def past_files(folder: Path) -> list[Path]:
    """The files of a folder that hold past events."""
    return sorted(path for path in Path(folder).glob("*") if path.suffix in (".parquet", ".csv"))


def _typed(stream: Stream, table: TableFile) -> pl.DataFrame:
    """A table of texts with the stream's fields as their types, and the truth as 0 and 1."""
    readers = {"number": cells.numbers, "int": cells.wholes, "text": cells.texts, "category": cells.texts}
    frame = table.frame
    for field in stream.fields:
        if field.name not in frame.columns:
            continue
        column = frame[field.name]
        of_values = field.type not in ("text", "category")
        read = cells.times(column).ms if field.type == "time" else readers[field.type](column)
        wrong = (read.is_null() & ~cells.is_missing(column, of_values=of_values)).arg_true()
        if len(wrong):
            title = table.columns[field.name]
            raise StreamFileError(
                f"{table.path.name}: column {title} has {column[wrong[0]]!r} in row {wrong[0] + 1}, but its type in "
                f"the stream file is {field.type}; fix the cell, or change the type in the stream file"
            )
        frame = frame.with_columns(read.alias(field.name))
    if stream.labels and stream.labels.column in frame.columns:
        column = frame[stream.labels.column]
        truth = cells.labels(column)
        is_unknown = cells.is_missing(column, of_values=False) & (stream.labels.reports == "both")
        wrong = (truth.is_null() & ~is_unknown).arg_true()
        if len(wrong):
            raise StreamFileError(
                f"{table.path.name}: column {stream.labels.column} has {column[wrong[0]]!r} in row {wrong[0] + 1}; it "
                "must be 0 or 1"
            )
        frame = frame.with_columns(truth.alias(stream.labels.column))
    return frame


def _check_type(file: str, field: Field, got: pl.DataType) -> None:
    fits = {
        "int": got.is_integer(),
        "number": got.is_numeric(),
        "text": got == pl.String,
        "category": got.is_integer() or got in (pl.String, pl.Boolean, pl.Categorical) or isinstance(got, pl.Enum),
        "time": got.is_integer() or (isinstance(got, pl.Datetime) and got.time_zone is not None),
    }
    if not fits[field.type]:
        fix = (
            "add a time zone (UTC), or use integers: milliseconds since 1970"
            if field.type == "time"
            else "cast the column, or change the type in the stream file"
        )
        raise StreamFileError(
            f"{file}: column {field.name} is {got}, but its type in the stream file is {field.type}; {fix}"
        )
