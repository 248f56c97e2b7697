"""The stream file: every mistake is reported at once, each with its line, the value and how to fix it."""

import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.contracts.stream import StormRules
from pipelines.contracts.stream_file import duration_ms, load, parse
from pipelines.errors import StreamFileError
from pipelines.features.state import State

STREAMS = Path(__file__).parents[3] / "flows" / "streams"

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


def test_a_column_says_what_it_is_of() -> None:
    text = GOOD.replace('stats = ["mean"]', 'stats = ["mean", "wratio"]')
    about = {c.name: (c.of, c.label_fed, c.entity, c.stat, c.window_ms) for c in parse(text).columns}
    assert about["amount"] == ("amount", False, None, None, None)
    assert about["country"] == ("country", False, None, None, None)
    assert about["hour"] == (None, False, None, "hour", None)
    assert about["card.amount.wratio.all"] == ("amount", False, "card", "wratio", None)
    assert about["shop.fraud_rate.1d"] == (None, True, "shop", "fraud_rate", 86_400_000)


def test_a_factor_is_in_the_name_only_where_two_would_share_one() -> None:
    group = '[[features]]\nentity = "card"\nfield = "amount"\nwindows = ["1d"]\nstats = ["above"]\nfactor = {}\n'
    stream = parse(GOOD + "".join(map(group.format, (3, 5, 2.5))))
    assert {f.name: f.factor for f in stream.features if f.stat == "above"} == {
        "card.amount.above.1d": 3.0, "card.amount.above_5.1d": 5.0, "card.amount.above_2.5.1d": 2.5,
    }  # fmt: skip
    with pytest.raises(StreamFileError, match=r"computes card\.amount\.above_5\.1d a second time"):
        parse(GOOD + "".join(map(group.format, (3, 5, 5))))


def test_a_group_has_a_feature_for_each_of_the_last_events() -> None:
    group = '[[features]]\nentity = "card"\nfield = "amount"\nstats = ["last_value", "last_age", "count"]\n'
    stream = parse(GOOD + group + 'windows = ["1h"]\nlast = 2\n')
    assert {f.name: (f.field, f.last) for f in stream.features[-5:]} == {
        "card.amount.last_value.1": ("amount", 1), "card.amount.last_value.2": ("amount", 2),
        "card.last_age.1": (None, 1), "card.last_age.2": (None, 2), "card.count.1h": (None, 0),
    }  # fmt: skip
    for wrong, said in (
        ("", r"features\.#3\.last is missing; add last = 4"),
        ("last = 0", r"features\.#3\.last is 0; it must be a whole number of events from 1 to 32"),
    ):
        with pytest.raises(StreamFileError, match=said):
            parse(GOOD + group + wrong)


def test_scores_are_late_after_a_minute_unless_the_file_says_otherwise() -> None:
    assert parse(GOOD).delayed_after_ms == 60_000
    assert parse(GOOD + 'delayed_after = "5s"\n').delayed_after_ms == 5_000
    with pytest.raises(StreamFileError, match=r"alerts\.delayed_after is 5; it must be a duration such as"):
        parse(GOOD + "delayed_after = 5\n")


def test_no_source_is_ranked_and_nothing_drawn_for_review_unless_the_file_says_so() -> None:
    plain = parse(GOOD)
    assert plain.labels is not None
    assert (plain.labels.sources, plain.review_share) == ((), 0.0)
    text = GOOD.replace('maturity = "7d"', 'maturity = "7d"\nsources = ["bank", "ann"]')
    ranked = parse(text + "review = 0.01\n")
    assert ranked.labels is not None
    assert (ranked.labels.strengths, ranked.review_share) == ({"bank": 2, "ann": 1}, 0.01)
    assert State(plain, 2).digest == State(parse(GOOD + "review = 0.01\n"), 2).digest != State(ranked, 2).digest


def test_an_entity_may_not_be_a_key_of_a_label() -> None:
    renamed = GOOD.replace('"card", "shop"', '"card", "why"').replace("shop = {", "why = {").replace('"shop"', '"why"')
    with pytest.raises(
        StreamFileError, match=r"fields\.why is a key of a label, which names the event, too; rename the"
    ):
        parse(renamed)


def test_storms_are_off_unless_the_file_limits_them() -> None:
    assert parse(GOOD).storms == StormRules()
    more = 'group = { entity = "card", within = "1h" }\ncap = { per_day = 200 }\n'
    stream = parse(GOOD + more)
    assert stream.storms == StormRules(within_ms=3_600_000, per_day=200)
    assert [stream.storms.per_partition(n) for n in (1, 3, 4, 1000)] == [200, 67, 50, 1]
    with pytest.raises(StreamFileError, match=r"it must be 'card', the first of the entities: only events of one key"):
        parse(GOOD + more.replace("card", "shop"))


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('name = "payments"', "", "line 1: stream.name is missing; add name = "),
        ('name = "payments"', 'name = "pay.ments"', "line 2: stream.name is 'pay.ments'; it must be 1-100 letters"),
        ('name = "payments"', "nam = 5", "line 2: stream.nam is not a known key; did you mean 'name'? Known names: na"),
        ('event_id = "id"', 'event_id = "amount"', "line 3: stream.event_id is 'amount', which is a field of type n"),
        ('event_id = "id"', 'event_id = "idd"', "line 3: stream.event_id is 'idd', which is not a field; did you mean"),
        ('event_time = "at"', 'event_time = "id"', "line 4: stream.event_time is 'id', which is a field of type text"),
        ('["card", "shop"]', "[]", "line 5: stream.entities is empty; list at least one field"),
        ('["card", "shop"]', "7", "line 5: stream.entities is 7; it must be a list of fields such as"),
        ('["card", "shop"]', '["card", "amount"]', "line 5: stream.entities has 'amount', which is a field of type n"),
        ('["card", "shop"]', '["card", "card", "shop"]', "line 5: stream.entities has 'card' twice; remove one"),
        ('name = "payments"', 'name = "p"\ncolour = 1', "line 3: stream.colour is not a known key; known names: name,"),
        ('name = "payments"', 'name = "p"\nduplicate_memory = "2 days"', "line 3: stream.duplicate_memory is '2 days'"),
        ('name = "payments"', 'name = "p"\nduplicate_memory_ids = 0', "line 3: stream.duplicate_memory_ids is 0; it"),
        ('name = "payments"', 'name = "p"\nlifetime_memory = "23h"', "line 3: stream.lifetime_memory is 23h, which i"),
        ('name = "payments"', 'name = "p"\nmax_message_bytes = 0', "line 3: stream.max_message_bytes is 0; it must b"),
        ("[stream]", "[streams]", "line 1: streams is not a known table; did you mean 'stream'? Known names: stream"),
        ('"text"', '"string"', "line 8: fields.id.type is 'string'; did you mean 'text'? It must be one of int, numb"),
        ('{ type = "category" }', '"category"', "line 13: fields.country is 'category'; it must be a table such as"),
        ('{ type = "category" }', "{}", "line 13: fields.country.type is missing; add type = "),
        ("max = 100", 'max = "x"', "line 12: fields.amount.max is 'x'; it must be a finite number"),
        ("max = 100", "max = nan", "line 12: fields.amount.max is NaN; it must be a finite number"),
        ("max = 100", "max = 1" + "0" * 400, "line 12: fields.amount.max is 1000"),
        ("max = 100", "max = -1", "line 12: fields.amount.min is 0, which is above max; it must be at most -1"),
        ("max = 100", "maximum = 1", "line 12: fields.amount.maximum is not a known key; did you mean 'max'? Known"),
        ("max = 100", 'required = "yes"', "line 12: fields.amount.required is 'yes'; it must be true or false"),
        ("max = 100", "max_length = 0", "line 12: fields.amount.max_length is 0; it must be a whole number from 1"),
        ("country =", "hour =", "line 13: fields.hour is the name of a feature computed from the event time; re"),
        ("country =", "offset =", "line 13: fields.offset is the name of a column that the lake adds; rename the f"),
        ("country =", '"the country" =', "line 13: fields.the country is not a valid name; use letters, digits and _"),
        ('country = { type = "category" }', 'born = { type = "time" }', "line 13: fields.born.type is 'time'; only t"),
        ('maturity = "7d"', "", "line 15: labels.maturity is missing; add maturity = "),
        ('maturity = "7d"', 'maturity = "5s"', "line 16: labels.maturity is 5s, which is less than the lag of 60s; it"),
        ('maturity = "7d"', 'maturity = "7d"\nsources = ["a", "a"]', "line 17: labels.sources has 'a' twice; remove"),
        ('maturity = "7d"', 'maturity = "7d"\nsources = "bank"', "labels.sources is 'bank'; it must be a list of s"),
        ('maturity = "7d"', 'maturity = "7d"\nsources = [""]', "line 17: labels.sources has ''; it must be text in q"),
        ("[alerts]", "[alerts]\nreview = 1.5", "line 30: alerts.review is 1.5; it must be a share of events between"),
        ('maturity = "7d"', 'maturity = "7d"\ncolumn = "amount"', "line 17: labels.column is 'amount', which is a fi"),
        ('entity = "shop"', 'entity = "country"', "line 25: features.#2.entity is 'country', which is not an entity;"),
        ('entity = "shop"', 'entity = "shopp"', "line 25: features.#2.entity is 'shopp', which is not an entity; did"),
        ('field = "amount"', 'field = "country"', "line 20: features.#1.field is 'country', which is not a number; i"),
        ('field = "amount"', "", "line 18: features.#1.field is missing; it must be a field of type int or number fo"),
        ('windows = ["1d"]', 'windows = ["1 day"]', "line 26: features.#2.windows has '1 day'; it must be a duration"),
        ('windows = ["1d"]', 'windows = ["10000000d"]', "line 26: features.#2.windows has '10000000d'; it must be a d"),
        ('windows = ["1d"]', 'windows = ["1ms"]', "line 26: features.#2.windows has '1ms'; it must be a whole number"),
        ('windows = ["1d"]', 'windows = ["1d"]\nfactor = 2', "line 27: features.#2.factor is 2, which is not used; on"),
        ('stats = ["mean"]', 'stats = ["above"]\nfactor = 1', "line 23: features.#1.factor is 1; it must be a number "),
        ('windows = ["1d"]', 'windows = ["all"]', "line 26: features.#2.windows has 'all', which fraud_rate does not"),
        ('windows = ["1d"]', "", "line 24: features.#2.windows is missing; count needs it, as in windows = "),
        ('"fraud_rate"]', '"median"]', "line 27: features.#2.stats has 'median'; did you mean 'mean'? It must be one"),
        ('"fraud_rate"]', '"count"]', "line 24: features.#2 computes shop.count.1d a second time; remove one"),
        ('"fraud_rate"]', '"distinct"]', "line 24: features.#2.field is missing; it must be a category or another e"),
        ("{ rate = 0.005 }", "{ rate = 2 }", "line 30: alerts.budget.rate is 2; it must be a share of events between"),
        ("{ rate = 0.005 }", "5", "line 30: alerts.budget is 5; it must be one of { rate = 0.005 }"),
        ("{ rate = 0.005 }", "{}", "line 30: alerts.budget has 0 keys; it must be one of { rate = 0.005 }"),
        ("{ rate = 0.005 }", "{ cost = { missed = 1 } }", "line 30: alerts.budget.cost.review is missing; add review"),
        ("{ rate = 0.005 }", "{ cost = { missed = 9, review = 1, fraud_rate = 1 } }", "cost.fraud_rate is 1; it must"),
        ("{ rate = 0.005 }", "{ cost = { missed = 9, review = 1, share = 0.1 } }", "cost.share is not a known key; k"),
        ("[alerts]", "[alerts]\ngroup = '1h'", "line 30: alerts.group is '1h'; it must be a table such as { entity = "),
        ("[alerts]", "[alerts]\ngroup = { within = '1h' }", 'alerts.group.entity is missing; add entity = "card"'),
        ("[alerts]", "[alerts]\ngroup = { entity = 'card' }", "line 30: alerts.group.within is missing; add within = "),
        ("[alerts]", "[alerts]\ngroup = { entity = 'card', within = 5 }", "line 30: alerts.group.within is 5; it mus"),
        ("[alerts]", "[alerts]\ngroup = { entity = 'shop', within = '1h' }", "alerts.group.entity is 'shop', which is"),
        ("[alerts]", "[alerts]\ncap = 5", "line 30: alerts.cap is 5; it must be a table such as { per_day = 200 }"),
        ("[alerts]", "[alerts]\ncap = {}", "line 30: alerts.cap.per_day is missing; add per_day = 200"),
        ("[alerts]", "[alerts]\ncap = { per_day = 0 }", "alerts.cap.per_day is 0; it must be a whole number of alerts"),
        ("{ rate = 0.005 }", "{ per_day = 9 }\ncap = { per_day = 8 }", "alerts.cap.per_day is 8, which is less than"),
        ("[alerts]", "[report]\nsegments = ['amount']\n[alerts]", "line 30: report.segments has 'amount', which is a"),
        ("[alerts]", "[report]\nsegments = ['contry']\n[alerts]", "report.segments has 'contry', which is not a field"),
        ("[alerts]", "[report]\nsegments = ['country', 'country']\n[alerts]", "report.segments has 'country' twice"),
        ("[alerts]", "[report]\nvalue = 'country'\n[alerts]", "line 30: report.value is 'country', which is a field"),
        ("[alerts]", "[report]\nvalue = 'card'\n[alerts]", "line 30: report.value is 'card', which is an id; it must"),
        ("[alerts]", "[report]\nmoney = 'amount'\n[alerts]", "report.money is not a known key; known names: segments,"),
        ("[alerts]", "[replay]\nlive_from = 2020-01-02\nlive_until = 2020-01-01\n[alerts]", "line 31: replay.live_u"),
        ("[alerts]", '[replay]\nlive_from = 2020-01-02\nlive_until = "x"\n[alerts]', "line 31: replay.live_until is "),
        ("[[features]]", "[features]", "line 24, is not valid TOML: Cannot overwrite a value; "),
        ("[alerts]", "[alerts", "line 29, is not valid TOML: Expected ']' at the end of a table declaration"),
        ('id = { type = "text" }', 'id = { type = "text" }\nid = { type = "int" }', "line 9, is not valid TOML: Cann"),
        ('name = "payments"', "name = payments", "line 2, is not valid TOML: Invalid value; text needs quotes"),
    ],
)  # fmt: skip
def test_a_mistake_is_reported_once_with_line_value_and_fix(old: str, new: str, said: str) -> None:
    assert old in GOOD
    with pytest.raises(StreamFileError) as raised:
        parse(GOOD.replace(old, new, 1), where="payments.toml")
    assert str(raised.value).startswith("payments.toml, line ")
    assert said in str(raised.value)
    assert len(raised.value.problems) == 1


def test_what_is_known_legitimate_needs_reports_of_it() -> None:
    text = GOOD.replace('"fraud_rate"]', '"since_legit"]')
    with pytest.raises(
        StreamFileError, match=r"'since_legit', which needs reports of legitimate .* reports = \"both\""
    ):
        parse(text)
    stream = parse(text.replace('maturity = "7d"', 'maturity = "7d"\nreports = "both"'))
    assert stream.labels is not None
    assert stream.labels.reports == "both"
    assert {c.name for c in stream.columns if c.label_fed} == {"shop.since_legit"}


def test_label_features_need_labels() -> None:
    with pytest.raises(StreamFileError, match=r"has 'fraud_rate', which needs labels; add a \[labels\] table with mat"):
        parse(GOOD.replace('[labels]\nmaturity = "7d"\n', ""))


def test_all_mistakes_are_reported_at_once_in_the_order_of_the_file() -> None:
    wrong = GOOD.replace('"payments"', "7").replace("max = 100", "maxx = 100").replace('["1d"]', '["1d", "soon"]')
    with pytest.raises(StreamFileError) as raised:
        parse(wrong, where="payments.toml")
    lines = str(raised.value).splitlines()
    assert lines[0] == "payments.toml has 3 problems:"
    assert lines[2].strip().startswith("2. line 12: fields.amount.maxx is not a known key; did you mean 'max'?")
    assert len(lines) == 4
    assert [(p.line, p.where, p.value) for p in raised.value.problems] == [
        (2, "stream.name", "7"), (12, "fields.amount.maxx", "'maxx'"), (26, "features.#2.windows", "'soon'"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda text: "", "is empty; a stream file needs at least the tables [stream] and [fields]"),
        (lambda text: "# nothing yet\n", "is empty"),
        (lambda text: text[: text.index("[fields]")] , "has no table [fields]; add it"),
        (lambda text: "fields = 5\n" + text.replace("[fields]", "[field]"), "line 1: fields is 5; it must be a table"),
    ],
)  # fmt: skip
def test_what_is_missing_altogether_is_reported(change: Callable[[str], str], said: str) -> None:
    with pytest.raises(StreamFileError) as raised:
        parse(change(GOOD))
    assert said in str(raised.value)


def test_a_stream_needs_something_to_learn_from() -> None:
    bare = re.sub(r"(amount|country) = .*\n", "", GOOD[: GOOD.index("[labels]")])
    with pytest.raises(StreamFileError, match="fields has nothing to learn from; add a field of type number or categ"):
        parse(bare)


def test_thousands_of_features_are_too_many() -> None:
    windows = ", ".join(f'"{n}d"' for n in range(1, 1002))
    with pytest.raises(StreamFileError) as raised:
        parse(GOOD.replace('["1d"]', f"[{windows}]").replace("[stream]", '[stream]\nlifetime_memory = "2000d"'))
    assert "features has 2,004 features; at most 1,000 are possible" in str(raised.value)


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_a_byte_order_mark_and_either_end_of_line_are_accepted(newline: str, tmp_path: Path) -> None:
    path = tmp_path / "stream.toml"
    path.write_bytes(b"\xef\xbb\xbf" + GOOD.replace("\n", newline).encode())
    assert load(path) == parse(GOOD)


@pytest.mark.parametrize(
    ("encoding", "said"),
    [
        ("utf-16", "is UTF-16; save it as UTF-8"),
        ("utf-16-le", "is UTF-16; save it as UTF-8"),
        ("utf-16-be", "is UTF-16; save it as UTF-8"),
        ("utf-32", "is UTF-32; save it as UTF-8"),
        ("latin-1", "line 2, is not UTF-8 (byte 14); save it as UTF-8"),
    ],
)
def test_another_encoding_is_named(encoding: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "stream.toml"
    path.write_bytes(f"# of\n# the caf\u00e9\n{GOOD}".encode(encoding))
    with pytest.raises(StreamFileError) as raised:
        load(path)
    assert said in str(raised.value)


def test_a_file_that_is_not_there_is_reported(tmp_path: Path) -> None:
    with pytest.raises(StreamFileError, match=r"no.toml cannot be read \(No such .*\); give the path of a stream file"):
        load(tmp_path / "no.toml")
    with pytest.raises(StreamFileError, match=r"cannot be read \(Is a directory\)"):
        load(tmp_path)


@pytest.mark.parametrize("text", ["", "5", "5 m", "-5m", "0s", "000s", "5w", "1.5h", 5, None, "٣s"])
def test_what_is_not_a_duration_is_refused(text: object) -> None:
    with pytest.raises(ValueError, match='must be a duration such as "60s"'):
        duration_ms(text)


@pytest.mark.parametrize("text", ["3661d", "10_000_000d".replace("_", ""), f"{'9' * 5000}ms"])
def test_a_duration_is_at_most_ten_years(text: str) -> None:
    assert duration_ms("3660d") == 3660 * 86_400_000
    with pytest.raises(ValueError, match="at most 10 years"):
        duration_ms(text)


# Line by line: what a line looks like, the mistake put in its place, and the key it is reported under. `{}`: the
# field, or the number of the group.
MISTAKES = [
    (r"^name = .*", 'name = "two words"', "stream.name"),
    (r"^name = .*", 'nmae = "x"', "stream.nmae"),
    (r"^event_id = \"\w+\"", 'event_id = "nobody"', "stream.event_id"),
    (r"^event_time = .*", "event_time = 5", "stream.event_time"),
    (r"^entities = .*", 'entities = "customer_id"', "stream.entities"),
    (r"^entities = .*", 'entities = ["customer_id", "terminal"]', "stream.entities"),
    (r"^(\w+) = \{ type = .*", '{} = {{ type = "nmber" }}', "fields.{}.type"),
    (r"^(\w+) = \{ type = .*", "{} = 7", "fields.{}"),
    (r"^(amount|channel) = \{ type = (.*) \}", "{} = {{ type = {}, colour = 1 }}", "fields.{}.colour"),
    (r"^(amount|channel) = \{ type = (.*) \}", '{} = {{ type = {}, required = "no" }}', "fields.{}.required"),
    (r"^maturity = .*", 'maturity = "1 week"', "labels.maturity"),
    (r"^maturity = .*", 'maturty = "7d"', "labels.maturty"),
    (r"^column = .*", "column = 0", "labels.column"),
    (r"^entity = .*", 'entity = "customer"', "features.#{}.entity"),
    (r"^entity = .*", 'entty = "customer_id"', "features.#{}.entty"),
    (r"^field = .*", 'field = "amuont"', "features.#{}.field"),
    (r"^field = .*", "feild = 3", "features.#{}.feild"),
    (r"^windows = .*", "windows = 5", "features.#{}.windows"),
    (r"^windows = .*", 'windows = ["10000000d"]', "features.#{}.windows"),
    (r"^windows = .*", 'windows = ["1ms"]', "features.#{}.windows"),
    (r"^windows = .*", 'widnows = ["7d"]', "features.#{}.widnows"),
    (r"^stats = .*", 'stats = ["meen"]', "features.#{}.stats"),
    (r"^stats = .*", "stats = [1]", "features.#{}.stats"),
    (r"^stats = .*", 'stats = "count"', "features.#{}.stats"),
    (r"^stats = .*", 'stat = ["count"]', "features.#{}.stat"),
    (r"^reports = .*", 'reports = "all"', "labels.reports"),
    (r"^reports = .*", 'report = "both"', "labels.report"),
    (r"^budget = .*", "budget = { rate = 7 }", "alerts.budget.rate"),
    (r"^budget = .*", "budgt = { rate = 0.1 }", "alerts.budgt"),
    (r"^segments = .*", 'segments = ["amount"]', "report.segments"),
    (r"^value = .*", 'value = "nobody"', "report.value"),
    (r"^live_from = .*", 'live_from = "soon"', "replay.live_from"),
    (r"^live_until = .*", "live_untill = 2018-07-08", "replay.live_untill"),
]


@given(data=st.data(), name=st.sampled_from(["payments", "handbook", "sparkov"]))
def test_random_mistakes_in_the_shipped_files_are_all_reported_and_nothing_else(data: st.DataObject, name: str) -> None:
    lines = (STREAMS / f"{name}.toml").read_text().splitlines()
    groups = [sum(line == "[[features]]" for line in lines[: n + 1]) for n in range(len(lines))]
    places = [(n, m) for n, line in enumerate(lines) for m in MISTAKES if re.match(m[0], line)]
    planted = data.draw(st.lists(st.sampled_from(places), min_size=1, max_size=8, unique_by=lambda place: place[0]))
    expected = set()
    for n, (pattern, mistake, where) in planted:
        found = re.match(pattern, lines[n])
        assert found is not None
        names = found.groups() or (groups[n],)
        lines[n] = mistake.format(*names) if "{}" in mistake else mistake
        expected.add((n + 1, where.format(*names)))
    with pytest.raises(StreamFileError) as raised:
        parse("\n".join(lines))
    assert {(p.line, p.where) for p in raised.value.problems} == expected


VALUES = [
    "5", "-1", "1.5", "inf", "true", "2020-01-01", "1979-05-27T07:32:00Z", '""', '"x"', '"7d"', '"all"',
    "[]", "[1, [2]]", '["x", 5]', "[[]]", "{}", "{ a = 1 }", "[{}]", "[{ a = 1 }]", "'shop'",
    "\"\"\"\n\"\"\"", "\"\\u0000\"", "",
]  # fmt: skip


@given(data=st.data(), name=st.sampled_from(["payments", "handbook", "sparkov"]))
def test_no_file_whatever_raises_anything_but_its_own_error(data: st.DataObject, name: str) -> None:
    lines = (STREAMS / f"{name}.toml").read_text().splitlines()
    for _ in range(data.draw(st.integers(1, 6))):
        n = data.draw(st.integers(0, len(lines) - 1))
        change = data.draw(st.sampled_from(["value", "value", "drop", "double", "move", "cut"]))
        if change == "value":
            lines[n] = f"{lines[n].partition('=')[0].strip('[] ') or 'x'} = {data.draw(st.sampled_from(VALUES))}"
        elif change == "move":
            lines.insert(data.draw(st.integers(0, len(lines) - 1)), lines.pop(n))
        else:
            lines[n : n + 1] = {"drop": [], "double": [lines[n]] * 2, "cut": [lines[n][:-1]]}[change]
        lines = lines or ["x = 1"]
    text = "\n".join(lines)
    with suppress(StreamFileError):
        parse(text)
