import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from flows.offline import report
from flows.offline.events import FileEvents, events_of
from flows.offline.init import guess
from flows.offline.tryout import TooFewRowsError, Tried, fill, try_file
from models.fit.leaks import LeakError
from pipelines.contracts.contract import EventContract
from pipelines.contracts.stream import Stream
from pipelines.contracts.stream_file import parse
from pipelines.lake.feature_table import feature_table
from pipelines.lake.tables import Lake
from pipelines.play.table_file import read_table

N, DAYS, BAD, ODD = 3_000, 60, 40, 12


def logins(n: int = N) -> pl.DataFrame:
    """Logins of 60 users over two months; the last ones of a dozen users move 60 times their usual volume."""
    rng = np.random.default_rng(3)
    user = rng.integers(60, size=n)
    volume = rng.lognormal(5, 0.2, 60)[user] * rng.lognormal(0, 0.3, n)
    odd = rng.choice(np.arange(int(n * 0.75), n), ODD, replace=False)
    volume[odd] *= 60
    label = np.zeros(n, int)
    label[odd] = 1
    stamp = pl.Series(np.sort(rng.integers(0, DAYS * 86_400, n)) * 1000 + 1_767_225_600_000).cast(pl.Datetime("ms"))
    return pl.DataFrame(
        {
            "login time": stamp.dt.to_string("%Y-%m-%d %H:%M:%S"),
            "user": [f"<b>u{i}</b>" for i in user],
            "kilo bytes": [f"{v:.1f}" if i % 75 else "much" for i, v in enumerate(volume)],
            "country": np.array(["DE", "FR", "NL"])[user % 3],
            "is_attack": label,
        }
    )


def events(folder: Path, frame: pl.DataFrame) -> tuple[Stream, FileEvents]:
    frame.write_csv(folder / "logins.csv")
    stream = parse(guess(folder / "logins.csv").text)
    return stream, events_of(stream, read_table(folder / "logins.csv"))


@pytest.fixture(scope="module")
def tried(tmp_path_factory: pytest.TempPathFactory) -> Tried:
    said: list[str] = []
    stream, found = events(tmp_path_factory.mktemp("try"), logins())
    tried = try_file(stream, found, announce=said.append)
    steps = ["checking", "computing", "training", "training", "scoring", "explaining"]
    assert [words.split(" ")[0] for words in said] == steps
    return tried


def test_every_row_is_scored_refused_or_learned_from(tried: Tried) -> None:
    assert {(one.rule, one.field, one.n_rows) for one in tried.refused} == {("wrong_type", "kilo_bytes", BAD)}
    assert tried.accepted.sum() == N - BAD == tried.n_learned + len(tried.score)
    assert np.isclose(len(tried.score) / (N - BAD), 0.3, atol=0.01)
    assert tried.begin_ms < tried.split_ms <= tried.time_ms.min()
    assert np.isfinite(tried.score).all()


def test_what_is_planted_is_found_and_explained(tried: Tried) -> None:
    assert tried.figures is not None
    assert tried.figures.frauds == ODD
    assert not tried.has_head  # the frauds all come after what was learned from
    assert tried.figures.average_precision == tried.figures.label_free > 0.8
    planted = {row for row, odd in enumerate(logins()["is_attack"], start=1) if odd}
    reasons = {row: alert.reasons[0].field for row, alert in tried.alerts}
    assert planted <= set(reasons)
    assert {reasons[row] for row in planted} == {"kilo_bytes"}
    assert all("kilo_bytes" in reasons[row] for row, _ in tried.alerts[:5])  # a login after a planted one: its window
    assert all(alert.score > alert.threshold == tried.threshold for _, alert in tried.alerts)


def test_a_field_that_knows_the_label_is_refused_by_name(tmp_path: Path) -> None:
    label = pl.Series("is_attack", np.arange(N) % 50 == 0)
    told = np.where(np.arange(N) % 100 == 7, ~label.to_numpy(), label.to_numpy())
    frame = logins().with_columns(label.cast(pl.Int64), review_class=np.where(told, 1.5, 0.0))
    stream, found = events(tmp_path, frame)
    with pytest.raises(LeakError, match=r"- review_class: it tells the label: 1.5 for .* of the frauds"):
        try_file(stream, found)


def test_the_features_are_those_of_the_replay_of_a_lake_that_the_ingest_filled(tmp_path: Path) -> None:
    stream, found = events(tmp_path, logins(400))
    lake = Lake(tmp_path / "lake", stream)
    fill(lake, stream, found)
    rows = feature_table(lake, stream, tmp_path / "features")
    accepted = {int(o) for o in rows.offset}
    contract = EventContract(stream)
    for offset, (key, value) in enumerate(found.messages()):
        taken = hasattr(contract.decode(value, key, 2**42), "event_id")
        assert taken == (offset in accepted)
    assert (np.diff(rows.time_ms) >= 0).all()


def test_too_few_good_rows_are_refused(tmp_path: Path) -> None:
    stream, found = events(tmp_path, logins(300))
    with pytest.raises(TooFewRowsError, match=r"296 of 300 rows satisfy the contract; 500 for training"):
        try_file(stream, found)


class _Links(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.outside: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.outside += [
            v or "" for name, v in attrs if name in ("src", "href", "xlink:href") and not (v or "").startswith("#")
        ]


def test_the_report_needs_nothing_from_outside_and_escapes_what_a_file_brings(tried: Tried) -> None:
    html = report.page(tried, file="<i>.csv", stream_file="a.toml", notes=["a <script> note"])
    page = _Links()
    page.feed(html)
    assert page.outside == []
    assert not {"script", "link", "img", "iframe", "i"} & set(page.tags) - {"i"}
    assert "&lt;b&gt;u" in html
    assert not re.search(r"<b>u\d", html)
    assert "&lt;i&gt;.csv" in html
    assert page.tags.count("svg") == 3
    assert len(html) < 1_000_000


def test_the_report_says_what_was_found(tried: Tried) -> None:
    html = report.page(tried, file="logins.csv", stream_file="logins.toml", notes=[])
    for words in (
        "<h2>Accuracy</h2>",
        "random",
        "wrong_type",
        "kilo_bytes",
        "Limits of this result",
        "0 frauds were known",
    ):
        assert words in html, words
    assert re.fullmatch(
        r"[\d,]+ of [\d,]+ scored events raise an alert \([\d.]+%\): \d+% of the labelled alerts .* are found",
        report.headline(replace(tried, n_alerts=5)),
    )


def test_more_alerts_than_the_budget_allows_are_a_warning_at_the_top(tried: Tried) -> None:
    calm = replace(tried, n_alerts=5)
    assert 'class="warn"' not in report.page(calm, file="a.csv", stream_file="a.toml", notes=[])
    drifted = replace(tried, n_alerts=len(tried.score) // 3)
    assert 'class="warn"' in report.page(drifted, file="a.csv", stream_file="a.toml", notes=[])
    assert re.search(r"\(33\.\d+%, the budget allows", report.headline(drifted))
