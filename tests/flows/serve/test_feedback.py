"""What a fraud team says reaches the next alerts: labels of ranked sources, suppressions, and a random review share."""

import json
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import numpy as np
import pytest
from typer.testing import CliRunner

from flows.cli.root import app
from flows.serve.champion import following
from flows.serve.follow import readable_alerts
from pipelines.contracts.messages import Alert, AlertRecord, Review, SuppressedAlert
from pipelines.contracts.stream_file import parse
from pipelines.lake.audit import reconcile, skew_audit
from pipelines.lake.ingest import ingest
from pipelines.live.reviews import is_drawn
from pipelines.live.serving import Serving
from pipelines.operate.explain import reproduce
from pipelines.operate.published import published
from tests.flows.serve.cached import Home
from tests.patience import wait_until
from tests.pipelines.live.kill_stream import TEXTS
from tests.pipelines.live.live_scorer import Linear
from tests.pipelines.live.rig import running

SHARE, N_ORDINARY, OVER = 0.05, 1_500, 1e5
LAG_S = 1.0  # of labels


def told(home: Home, *words: str) -> str:
    """What a command of an analyst prints."""
    ran = CliRunner().invoke(app, [*words, "--stream", str(home.stream_file)], env={"COLUMNS": "250"})
    assert ran.exit_code == 0, ran.output
    return ran.output


class Desk:
    """A stream with ranked sources and reviews, a scorer that obeys the control topic, and the analysts' commands."""

    def __init__(self, home: Home) -> None:
        text = TEXTS["merged"].format(name=home.stream.name)
        text = text.replace("[labels]\n", '[labels]\nsources = ["bank", "analyst"]\n')
        home.stream_file.write_text(f"{text}\n[alerts]\nreview = {SHARE}\n")
        home.stream = home.rig.stream = parse(home.stream_file.read_text())
        home.put("first")
        self.home, self.rig, self.stream = home, home.rig, home.stream

    @contextmanager
    def scoring(self) -> Iterator[None]:
        """A scorer with a plain model and with what the orders so far say."""
        self._follower = following(self.home.settings, self.stream, name="r")
        serving = Serving(Linear(self.stream))
        serving.suppressions = self._follower.serving.suppressions
        with running(self.rig.scorer(serving=serving)):
            yield
        self._follower.stop()

    def obeyed(self, n_suppressed: int) -> None:
        """Wait until the scorer knows of so many suppressions."""

        def knows() -> bool:
            self._follower.look()
            return len(self._follower.serving.suppressions) == n_suppressed

        wait_until(knows)

    def send(self, name: str, card: str, *, shop: int, at_ms: int, amount: float = 5.0) -> None:
        event = {"id": name, "at": at_ms, "card": card, "shop": shop, "amount": amount}
        self.rig.send_many([json.dumps(event).encode()], card.encode())
        self.rig.wait_until_out()

    def alerted(self, name: str) -> Alert | SuppressedAlert | Review:
        (found,) = (one for one in self.alerts if getattr(one, "event_id", None) == name)
        assert isinstance(found, Alert | SuppressedAlert | Review)
        return found

    @property
    def alerts(self) -> list[AlertRecord]:
        return list(readable_alerts(self.rig.published("alerts")))

    def ingest(self) -> None:
        ingest(self.rig.connection, self.stream, self.home.settings.lake(self.stream))


@pytest.fixture
def desk(home: Home) -> Desk:
    return Desk(home)


@pytest.mark.timeout(600)
def test_labels_suppressions_and_reviews_reach_the_next_alerts_and_the_audit_is_clean(
    desk: Desk, tmp_path: Path
) -> None:
    home, rig, stream = desk.home, desk.rig, desk.stream
    at_ms = round(time.time() * 1000)
    with desk.scoring():
        for shop in (1, 2):
            desk.send(f"e{shop}", f"c{shop}", shop=shop, at_ms=at_ms)
        desk.ingest()
        for name, value, source in (("e1", 0, "bank"), ("e1", 1, "analyst"), ("e2", 0, "rule"), ("e2", 1, "analyst")):
            told(home, "label", name, f"{value}", "--source", source, "--by", "ann", "--why", f"seen by {source}")
        time.sleep(LAG_S + 0.5)  # of the broker's clock
        told(home, "suppress", "--entity", "card=c7", "--until", "2199-01-01", "--why", "known travel", "--by", "ann")
        assert re.search(r"card c7 +2199-01-01T00:00:00.000Z +ann .*known travel", told(home, "suppressions"))
        desk.obeyed(1)
        for shop in (1, 2):
            desk.send(f"probe{shop}", "c8", shop=shop, at_ms=at_ms + 5_000, amount=OVER)
        desk.send("quiet", "c7", shop=3, at_ms=at_ms + 5_000, amount=OVER)
        rig.send(N_ORDINARY)
        rig.wait_until_out()

    probes = [desk.alerted(f"probe{shop}") for shop in (1, 2)]
    assert [isinstance(one, Alert) and one.features["shop.fraud_count.12s"] for one in probes] == [0.0, 1.0]
    quiet = desk.alerted("quiet")
    assert isinstance(quiet, SuppressedAlert)
    assert (quiet.alert, quiet.entities["card"], quiet.suppression.by) == (True, "c7", "ann")

    with desk.scoring():  # another process, which reads the orders again
        desk.send("still quiet", "c7", shop=3, at_ms=at_ms + 5_000, amount=OVER)
        told(home, "unsuppress", "--entity", "card=c7", "--why", "back")
        desk.obeyed(0)
        desk.send("loud again", "c7", shop=3, at_ms=at_ms + 5_000, amount=OVER)
        desk.send("probe3", "c8", shop=1, at_ms=at_ms + 5_000, amount=OVER)
    assert isinstance(desk.alerted("still quiet"), SuppressedAlert)
    assert isinstance(desk.alerted("loud again"), Alert)
    assert isinstance(probe := desk.alerted("probe3"), Alert)
    assert probe.features["shop.fraud_count.12s"] == 0.0, "the label of the analyst is still the weaker one"
    assert "No alerts of stream" in told(home, "suppressions")

    reviews = [one for one in desk.alerts if isinstance(one, Review)]
    events = [one for one in rig.scores() if not one["alert"]]
    places = np.array([(one["source"]["partition"], one["source"]["offset"]) for one in events])
    drawn = places[is_drawn(places[:, 0], places[:, 1], stream.topic("events"), SHARE)]
    assert {(one.source.partition, one.source.offset) for one in reviews} == set(map(tuple, drawn.tolist()))
    assert len(reviews) == len(drawn) == len({one.review_id for one in reviews})
    assert abs(len(drawn) - SHARE * len(events)) < 5 * (SHARE * (1 - SHARE) * len(events)) ** 0.5
    assert not any(one.alert for one in reviews)
    assert all(one.features for one in reviews)

    found = reconcile(rig.connection, stream)
    assert found.holds, found.words()
    counts = found.alerts
    n_over = sum(score["alert"] for score in rig.scores())
    assert (counts.n_over, counts.n_suppressed, counts.n_reviews, counts.unchecked) == (n_over, 2, len(reviews), 0)
    assert f"{counts.n_full} alerts in full + 0 counted in groups + 0 listed + 2 suppressed" in found.words()
    desk.ingest()
    lake = home.settings.lake(stream)
    skew = skew_audit(lake, stream, tmp_path / "features", models=lambda _: Linear(stream))
    assert skew.holds, skew

    again = reproduce(
        rig.connection, stream, lake, rig.folder / "snapshots",
        published(rig.connection, stream, lake, quiet.alert_id[:12]), models=lambda *_: Linear(stream),
    )  # fmt: skip
    assert (again.verdict, again.suppressed) == ("equal", quiet.suppression)
    review = published(rig.connection, stream, lake, reviews[0].review_id)
    assert (review.event_id, review.alert) == (reviews[0].event_id, reviews[0])

    rows = [msgspec.json.decode(line) for line in told(home, "labels", "e1", "--json").splitlines()]
    assert [(row["label"], row["source"], row["by"], row["why"], row["holds"]) for row in rows] == [
        (0, "bank", "ann", "seen by bank", True),
        (1, "analyst", "ann", "seen by analyst", False),
    ]
    assert re.search(r"0 +bank +ann .*seen by bank +holds", told(home, "labels", "e1"))
    assert "has no label" in told(home, "labels", "probe1")
    shown = told(home, "alerts", "--last", "2000")
    assert f"suppressed alert {quiet.alert_id[:12]}: card c7" in shown
    assert f"random review {reviews[0].review_id[:12]}" in shown


def test_what_cannot_be_suppressed_is_told(home: Home) -> None:
    def refused(*words: str) -> str:
        ran = CliRunner().invoke(app, [*words, "--stream", str(home.stream_file)])
        assert ran.exception is not None
        return str(ran.exception)

    when = ("--until", "2199-01-01", "--why", "test")
    assert "it must be NAME=ID with an entity of stream" in refused("suppress", "--entity", "amount=5", *when)
    assert "ids of shop are whole numbers" in refused("suppress", "--entity", "shop=x", *when)
    assert "in the future" in refused("suppress", "--entity", "shop=3", "--until", "2020-01-01", "--why", "test")
    assert "are not suppressed" in refused("unsuppress", "--entity", "shop=3")
    told(home, "suppress", "--entity", "shop=007", *when)
    assert re.search(r"^shop 7 ", told(home, "suppressions"), flags=re.MULTILINE)
