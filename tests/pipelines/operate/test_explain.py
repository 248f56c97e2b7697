"""Alerts and scores are reproduced from the lake; what differs or is gone is named."""

import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow.compute as pc
import pytest
from numpy.typing import NDArray

from models.score.explain import FieldReason
from pipelines.contracts.messages import Alert, decode
from pipelines.kafka.port import Message
from pipelines.lake.audit import NoModelError
from pipelines.lake.tables import Lake
from pipelines.live.scorer import Scorer
from pipelines.live.serving import Serving
from pipelines.live.setting import ScorerSetting
from pipelines.model import Model
from pipelines.operate.explain import Reproduction, reproduce
from pipelines.operate.published import NoScoreError, Published, published
from tests.flows.test_cli import unmask
from tests.pipelines.live.kill_stream import TEXTS
from tests.pipelines.live.live_scorer import Explained, LateConnection, Linear
from tests.pipelines.live.rig import Alone, Rig, running

N_CARDS, N_ROUNDS = 6, 40


class Reasoning(Linear):
    """Alerts on large amounts; its reason is the amount."""

    threshold = 0.9995

    def explain(self, numeric: NDArray[np.float64], categorical: NDArray[np.uint64]) -> Sequence[Explained]:
        score = self.score(numeric, categorical)
        amount = self.numeric_names.index("amount")
        return [
            Explained([asdict(FieldReason("amount", float(row[amount]), 5.0, 9.5, float(s) / 2))], float(s) / 4)
            for row, s in zip(numeric, score, strict=True)
        ]


class Scored(Rig):
    """Events of two partitions, one of them read late now and then, with labels, dead letters and snapshots."""

    def __init__(self, bootstrap: str, folder: Path) -> None:
        super().__init__(bootstrap, folder)
        late = ScorerSetting(
            self.stream,
            LateConnection(bootstrap),
            folder / "snapshots",
            order_wait=timedelta(milliseconds=-300),
            snapshot_every=timedelta(seconds=1),
        )
        scorer = Scorer(late, Serving(Reasoning(self.stream)), start="earliest", member=Alone(self.n_partitions))
        with running(scorer):
            for round_ in range(N_ROUNDS):
                self._send_round(round_)
                time.sleep(0.1)
            self.wait_until_out()

    def _send_round(self, round_: int) -> None:
        with self.connection.writer() as writer:
            for card in range(N_CARDS):
                key = f"c{card}".encode()
                writer.send(Message(self.stream.topic("events"), self.event(round_, card), key))
                if round_ % 7 == card:
                    writer.send(Message(self.stream.topic("labels"), self.label(round_, card), key))
            writer.flush()
        self.n_sent += N_CARDS

    @staticmethod
    def label(round_: int, card: int) -> bytes:
        now_ms = int(time.time() * 1000)
        label = {"id": f"e{round_}-{card}", "at": now_ms, "card": f"c{card}", "shop": card % 3, "label": 1}
        return json.dumps(label | {"labelled_at": now_ms, "source": "test"}).encode()

    @staticmethod
    def event(round_: int, card: int) -> bytes:
        amount = 5e4 if (round_ * N_CARDS + card) % 50 == 49 else 10.0 + card
        return json.dumps({"id": f"e{round_}-{card}", "at": int(time.time() * 1000), "card": f"c{card}",
                           "shop": card % 3, "amount": amount, "country": "be"}).encode()  # fmt: skip

    @property
    def lake(self) -> Lake:
        return Lake(self.folder / "lake", self.stream)

    @property
    def alerts(self) -> list[Alert]:
        return [decode(record.value, Alert) for record in self.published("alerts")]

    def find(self, named: str) -> Published:
        return published(self.connection, self.stream, self.lake, named)

    def reproduce(
        self, found: Published, *, lake: Lake | None = None, snapshots: bool = True, model: Model | None = None
    ) -> Reproduction:
        folder = self.folder / ("snapshots" if snapshots else "none")
        return reproduce(
            self.connection,
            self.stream,
            lake or self.lake,
            folder,
            found,
            models=lambda digest, threshold: model or Reasoning(self.stream),
        )


@pytest.fixture(scope="module")
def scored(kafka: str, tmp_path_factory: pytest.TempPathFactory) -> Scored:
    return Scored(kafka, tmp_path_factory.mktemp("explained"))


def test_every_kind_of_score_is_reproduced_from_the_beginning_and_from_a_snapshot(scored: Scored) -> None:
    scores = scored.scores()
    late = [score for score in scores if score["out_of_order"]]
    assert len(scores) == N_CARDS * N_ROUNDS
    assert len(late) > 3
    sources = set()
    for score in [*scores[::40], *late[:: len(late) // 3], scores[-1]]:
        place = f"{score['source']['partition']}:{score['source']['offset']}"
        for snapshots in (True, False):
            again = scored.reproduce(scored.find(place), snapshots=snapshots)
            assert (again.verdict, again.differs, again.why_not) == ("equal", [], [])
            assert again.features_hash == score["features_hash"]
            assert again.event_id == score["event_id"]
            sources.add(again.state_from.partition(" ")[0])
            assert snapshots or again.state_from == "the beginning of the lake"
    assert sources == {"snapshot", "the"}


def test_alerts_are_found_by_the_beginning_of_their_id_and_reproduced_with_their_reasons(scored: Scored) -> None:
    alerts = scored.alerts
    assert len(alerts) >= 4
    for alert in alerts[:: max(len(alerts) // 4, 1)]:
        found = scored.find(alert.alert_id[:12])
        assert (found.alert, found.event_id) == (alert, alert.event_id)
        again = scored.reproduce(found)
        assert again.verdict == "equal", again
        assert again.reasons == alert.reasons
        assert {one.name: one.published for one in again.features} == alert.features
        assert scored.find(alert.event_id) == found


class Tampered(Lake):
    """A lake in which one event has another amount."""

    event_id = ""

    def read(self, table: str, *, columns: list[str] | None = None, where: pc.Expression | None = None) -> pl.DataFrame:
        frame = super().read(table, columns=columns, where=where)
        if table != "events" or "amount" not in frame.columns:
            return frame
        amount = pl.when(event_id=self.event_id).then(pl.col("amount") + 100.0).otherwise(pl.col("amount"))
        return frame.with_columns(amount.alias("amount"))


def test_features_that_differ_are_named(scored: Scored) -> None:
    alert = scored.alerts[-1]
    found = scored.find(alert.alert_id)
    lake = Tampered(scored.folder / "lake", scored.stream)
    before = [s for s in scored.scores() if s["source"]["partition"] == found.partition]
    card = alert.entities["card"]
    lake.event_id = next(s["event_id"] for s in before if s["event_id"].endswith(f"-{str(card)[1:]}"))
    again = scored.reproduce(found, lake=lake, snapshots=False)
    assert again.verdict == "differs"
    assert "card.amount.mean.all" in again.differs[0]
    assert [one.name for one in again.features if one.recomputed != one.published]
    assert "amount" not in [one.name for one in again.features if one.recomputed != one.published]


def test_another_score_and_other_reasons_differ(scored: Scored) -> None:
    class Other(Reasoning):
        def score(self, numeric: NDArray[np.float64], categorical: NDArray[np.uint64]) -> NDArray[np.float32]:
            return super().score(numeric, categorical) - np.float32(1e-4)

    again = scored.reproduce(scored.find(scored.alerts[0].alert_id), model=Other(scored.stream))
    assert again.verdict == "differs"
    assert [words.split(":")[0] for words in again.differs] == ["score", "reasons"]


def test_what_is_gone_is_said_and_is_no_difference(scored: Scored) -> None:
    def none(digest: str, threshold: float | None) -> Model:
        assert threshold == Reasoning.threshold
        raise NoModelError(f"the registry has no {digest}")

    found = scored.find(scored.alerts[0].alert_id)
    again = reproduce(scored.connection, scored.stream, scored.lake, scored.folder / "none", found, models=none)
    assert again.verdict == "not reproduced"
    assert again.why_not == [
        "model linear is not available, so the score is not recomputed: the registry has no linear"
    ]
    assert again.features_hash == found.features_hash

    again = scored.reproduce(found._replace(alert=None))
    assert again.verdict == "not reproduced"
    assert "the alert is not in Kafka in full" in again.why_not[0]
    assert again.score == pytest.approx(found.score, abs=1e-6)

    class Erased(Lake):
        def read(self, table: str, **how: Any) -> pl.DataFrame:
            frame = super().read(table, **how)
            return frame.clear() if table == "events" else frame

    again = scored.reproduce(found, lake=Erased(scored.folder / "lake", scored.stream))
    assert again.verdict == "not reproduced"
    assert "the lake has the score but not the event" in again.why_not[0]


def test_what_has_no_score_is_said_with_the_reason(kafka: str, tmp_path: Path) -> None:
    rig = Rig(kafka, tmp_path)
    rig.send(10)
    with running(rig.scorer(start="latest")):
        rig.send_raw(b"{", b"c1", partition=0)
        twice = json.dumps({"id": "twice", "at": int(time.time() * 1000), "card": "c1", "amount": 5.0}).encode()
        rig.send_many([twice, twice], b"c1", partition=1)
        rig.wait_until_out()
    rig.send_raw(b"{", b"c1", partition=0)
    lake = Lake(tmp_path / "lake", rig.stream)
    [first] = [letter for letter in rig.refused() if letter.rule == "bad_json"]
    [duplicate] = [letter for letter in rig.refused() if letter.rule == "duplicate"]
    for named, says in {
        f"0:{first.source.offset}": "was refused: bad_json",
        f"0:{first.source.offset + 1}": "has not been scored yet",
        f"1:{duplicate.source.offset}": f"is a duplicate; its original is at 1:{duplicate.duplicate_of}",
        "e0": "is history: scoring started at offset",
        "7:0": "has no partition 7",
        "e77": "has no alert, event or score 'e77'",
    }.items():
        with pytest.raises(NoScoreError, match=says):
            published(rig.connection, rig.stream, lake, named)
    assert published(rig.connection, rig.stream, lake, "twice").offset == duplicate.duplicate_of


def test_the_command_shows_features_and_verdict(scored: Scored, tmp_path: Path) -> None:
    def explain(*words: str) -> tuple[int, str, str]:
        ran = unmask("explain", *words, "--stream", str(stream_file), home=tmp_path / "home", **servers)
        return ran.returncode, ran.stdout, ran.stderr

    stream_file, servers = tmp_path / "stream.toml", {"KAFKA_BOOTSTRAP_SERVERS": scored.connection.bootstrap}
    stream_file.write_text(TEXTS["merged"].format(name=scored.stream.name))
    alert = scored.alerts[0]
    code, shown, _ = explain(alert.alert_id)
    assert code == 1  # the test's model is in no registry
    assert "card.amount.mean.60s" in shown
    assert "model linear is not available" in shown
    assert f"features hash: {alert.features_hash}, {alert.features_hash} published" in shown
    assert shown.splitlines()[-1] == "verdict: not reproduced"
    code, shown, _ = explain(alert.event_id, "--json")
    said = json.loads(shown)
    assert (code, said["verdict"], said["differs"]) == (1, "not reproduced", [])
    assert {one["name"]: one["recomputed"] for one in said["features"]} == alert.features
    code, _, why = explain("e-unknown")
    assert (code, "has no alert, event or score 'e-unknown'" in why) == (2, True)
