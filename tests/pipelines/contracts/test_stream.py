"""The stream file: every mistake is told with its line, the value and how to mend it."""

from pathlib import Path

import pytest

from pipelines.contracts.stream_file import duration_ms, load, parse
from pipelines.errors import StreamFileError

GOOD = """\
[stream]
name = "payments"
event_id = "id"
event_time = "at"
entities = ["card", "shop"]

[fields]
id = { type = "text" }
at = { type = "time" }
card = { type = "int" }
shop = { type = "int" }
amount = { type = "number", min = 0, max = 100 }
country = { type = "category" }

[labels]
maturity = "7d"

[[features]]
entity = "card"
field = "amount"
windows = ["1h", "all"]
stats = ["mean"]

[[features]]
entity = "shop"
windows = ["1d"]
stats = ["count", "fraud_rate"]

[alerts]
budget = { rate = 0.005 }
"""


def test_a_good_file_is_read_whole() -> None:
    stream = parse(GOOD)
    assert (stream.topics, stream.key, stream.numbers, stream.categories) == (
        "payments",
        "card",
        ("amount",),
        ("country",),
    )
    assert stream.hashed == ("country", "card", "shop")
    assert (stream.duplicate_memory_ids, stream.lifetime_memory_ms) == (10_000_000, 400 * 86_400_000)
    assert [f.name for f in stream.features] == [
        "card.amount.mean.1h", "card.amount.mean.all", "shop.count.1d", "shop.fraud_rate.1d",
    ]  # fmt: skip
    assert {c.name for c in stream.columns if c.label_fed} == {"shop.fraud_rate.1d"}
    assert [f.required for f in stream.fields[:4]] == [True, True, True, False]
    assert stream.topic("events") == "payments.events"


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ('name = "payments"', "", "line 1: stream.name: name is required and must be a text"),
        ('name = "payments"', 'name = "pay.ments"', "line 2: stream.name = 'pay.ments': must be 1-100 letters"),
        ('event_id = "id"', 'event_id = "amount"', "line 3: stream.event_id = 'amount': must be a field of type i"),
        ('event_time = "at"', 'event_time = "id"', "line 4: stream.event_time = 'id': must be a field of type time"),
        ('["card", "shop"]', "[]", "line 5: stream.entities = []: must list at least one field"),
        ('["card", "shop"]', '["card", "amount"]', "line 5: stream.entities = 'amount': must be a field of type i"),
        ('["card", "shop"]', '["card", "card"]', "line 5: stream.entities = ['card', 'card']: an entity is named"),
        ('name = "payments"', 'name = "p"\ncolour = 1', "line 3: stream.colour = 'colour': unknown key; known are"),
        ('name = "payments"', 'name = "p"\nduplicate_memory = "2 days"', "line 3: stream.duplicate_memory = '2 da"),
        ('name = "payments"', 'name = "p"\nduplicate_memory_ids = 0', "line 3: stream.duplicate_memory_ids = 0: must"),
        ('name = "payments"', 'name = "p"\nlifetime_memory = "23h"', "line 3: stream.lifetime_memory = '23h': must be"),
        ('name = "payments"', 'name = "p"\nmax_message_bytes = 0', "line 3: stream.max_message_bytes = 0: must be"),
        ("[stream]", "[streams]", "line 1: streams = 'streams': unknown table; known are stream, fields"),
        ('"text"', '"string"', "line 8: fields.id = 'string': type must be one of int, number, text, category, time"),
        ('{ type = "category" }', '"category"', "line 13: fields.country = 'category': must be a table such as"),
        ("max = 100", 'max = "x"', "line 12: fields.amount = 'x': max must be a number"),
        ("max = 100", "max = -1", "line 12: fields.amount = 0: min must not be above max"),
        ("max = 100", "maximum = 1", "line 12: fields.amount = 'maximum': unknown key; known are type, required"),
        ("max = 100", 'required = "yes"', "line 12: fields.amount = 'yes': required must be true or false"),
        ("max = 100", "max_length = 0", "line 12: fields.amount = 0: max_length must be a whole number of charact"),
        ("country =", "hour =", "line 13: fields.hour: hour and weekday are computed from the event time; rename"),
        ('country = { type = "category" }', 'born = { type = "time" }', "line 13: fields.born = 'time': only the"),
        ('maturity = "7d"', "", "line 15: labels: maturity is missing"),
        ('maturity = "7d"', 'maturity = "5s"', "line 16: labels.maturity = '5s': must be at least the lag"),
        ('maturity = "7d"', 'maturity = "7d"\ncolumn = "amount"', "line 17: labels.column = 'amount': the truth m"),
        ('entity = "shop"', 'entity = "country"', "line 25: features.#2.entity = 'country': must be one of the st"),
        ('field = "amount"', 'field = "country"', "line 20: features.#1.field = 'country': mean needs field = a f"),
        ('windows = ["1d"]', 'windows = ["1 day"]', "line 26: features.#2.windows = '1 day': must be a duration s"),
        ('windows = ["1d"]', 'windows = ["all"]', "line 26: features.#2.windows = 'all': fraud_rate has no all-ti"),
        ('windows = ["1d"]', "", "line 24: features.#2.windows = []: count needs windows"),
        ('"fraud_rate"]', '"median"]', "line 27: features.#2.stats = 'median': must be one of count, since_last"),
        ('"fraud_rate"]', '"count"]', "line 24: features.#2 = 'shop.count.1d': is computed twice; drop one"),
        ('"fraud_rate"]', '"distinct"]', "features.#2.field: distinct needs field = a category field or another e"),
        ("{ rate = 0.005 }", "{ rate = 2 }", "line 30: alerts.budget = 2: rate must be a share of events between"),
        ("{ rate = 0.005 }", "5", "line 30: alerts.budget = 5: must be one of { rate = 0.005 }"),
        ("{ rate = 0.005 }", "{ cost = { missed = 1 } }", "line 30: alerts.budget = {'missed': 1}: cost must be {"),
        ("{ rate = 0.005 }", "{ cost = { missed = 9, review = 1, fraud_rate = 1 } }", "cost must be { missed = ..., r"),
        ("{ rate = 0.005 }", "{ cost = { missed = 9, review = 1, share = 0.1 } }", "cost must be { missed = ..., r"),
        ("[alerts]", "[alerts", "not TOML"),
    ],
)  # fmt: skip
def test_a_mistake_is_told_with_line_value_and_mend(old: str, new: str, told: str) -> None:
    assert old in GOOD
    with pytest.raises(StreamFileError) as raised:
        parse(GOOD.replace(old, new, 1), where="payments.toml")
    assert str(raised.value).startswith("payments.toml")
    assert told in str(raised.value)


def test_label_features_need_labels() -> None:
    with pytest.raises(StreamFileError, match=r"fraud_rate': needs labels: add a \[labels\] table with maturity"):
        parse(GOOD.replace('[labels]\nmaturity = "7d"\n', ""))


def test_a_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(StreamFileError, match=r"cannot be read .*; give the path of a stream file"):
        load(tmp_path / "no.toml")


@pytest.mark.parametrize("text", ["", "5", "5 m", "-5m", "0s", "5w", "1.5h", 5, None, "٣s"])
def test_what_is_no_duration_is_refused(text: object) -> None:
    with pytest.raises(ValueError, match='must be a duration such as "60s"'):
        duration_ms(text)
