"""Orders to a scorer: model, threshold, budget, rollback; what is published names what decided it; restarts agree."""

import shutil
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load as load_safetensors
from safetensors.numpy import save as save_safetensors

from flows.serve.champion import following
from flows.serve.orders import Operator
from models.ship.artifact import FILES
from models.ship.manifest import write_files
from models.table import Column
from pipelines.errors import UnmaskError
from pipelines.live.control import Orders, order_of, send_order
from tests.flows.serve.cached import Home
from tests.patience import wait_until
from tests.pipelines.live.rig import running


class Replica:
    """The follower of a scorer; the test says when it looks."""

    def __init__(self, at: Home, name: str = "r") -> None:
        self.follower = following(at.settings, at.stream, name=name)
        self.serving = self.follower.serving

    @property
    def used(self) -> tuple[str, float]:
        return self.serving.champion.digest, self.serving.champion.threshold

    def follow(self, holds: Callable[[], bool]) -> None:
        """Look until it holds: an order needs a moment on its way."""

        def looked() -> bool:
            self.follower.look()
            return holds()

        wait_until(looked)

    def close(self) -> None:
        self.follower.stop()


def operator(at: Home) -> Operator:
    return Operator(at.settings, at.stream, by="ann")


def test_thresholds_and_models_are_changed_rolled_back_and_the_same_after_a_restart(home: Home) -> None:
    first, second = home.put("first", threshold=0.5), home.put("second", threshold=0.25)
    ann = operator(home)
    with pytest.raises(UnmaskError, match="no single model scores stream"):
        ann.set_threshold(0.75, why="too many")
    replica = Replica(home)
    assert replica.used == (first, 0.5)
    with pytest.raises(UnmaskError, match="no model used before"):
        ann.roll_back(why="alarms")
    ann.set_threshold(0.75, why="too many")
    replica.follow(lambda: replica.used == (first, 0.75))
    ann.use(second, why="newer")
    replica.follow(lambda: replica.used == (second, 0.25))
    ann.set_threshold(0.125, why="too few")
    replica.follow(lambda: replica.used == (second, 0.125))
    assert Replica(home, "other").used == (second, 0.125)
    ann.roll_back(why="alarms")
    replica.follow(lambda: replica.used == (first, 0.75))
    assert replica.serving.previous is None  # it was used before: no trial
    ann.use(second, why="it was not the model")
    replica.follow(lambda: replica.used == (second, 0.125))
    ann.set_threshold(None, why="as trained")
    replica.follow(lambda: replica.used == (second, 0.25))
    again = Replica(home, "again")
    assert again.used == (second, 0.25)
    assert again.serving.champion.ordered_threshold is None
    replica.close()
    again.close()


def test_scores_and_alerts_name_the_threshold_that_decided_them(home: Home) -> None:
    digest = home.put("first", threshold=1.0)
    replica, rig = Replica(home), home.rig
    scorer = rig.scorer(serving=replica.serving)
    with running(scorer):
        rig.send(500)
        rig.wait_until_out()
        assert {"threshold" in score for score in rig.scores()} == {False}
        operator(home).set_threshold(0.0, why="all", model=digest)
        replica.follow(lambda: scorer.model.threshold == 0.0)
        rig.send(500)
        rig.wait_until_out()
    scores = sorted(rig.scores(), key=lambda score: (score["source"]["partition"], score["source"]["offset"]))
    assert len({score["event_id"] for score in scores}) == len(scores) == 1_000
    assert [score.get("threshold") for score in scores].count(0.0) == 500
    assert all(score["alert"] == (score["score"] > score.get("threshold", 1.0)) for score in scores)
    assert {score["model"] for score in scores} == {digest}
    alerts = [record.value for record in rig.published("alerts")]
    assert len(alerts) >= 499
    assert all(b'"threshold":0.0' in (alert or b"") for alert in alerts)
    replica.close()


def test_a_budget_is_met_by_what_the_model_scored_last(home: Home) -> None:
    digest = home.put("first", threshold=0.0)
    rig = home.rig
    replica = Replica(home)
    scorer = rig.scorer(model=replica.serving.champion)
    with running(scorer):
        rig.send(2_000)
        rig.wait_until_out()
    ann = operator(home)
    with pytest.raises(UnmaskError, match="which are too few to find a threshold for 50 alerts a day"):
        ann.set_budget(50, why="fewer")
    arrivals = sorted(datetime.fromisoformat(score["arrival"]) for score in rig.scores())
    days = (arrivals[-1] - arrivals[0]).total_seconds() / 86_400
    replica.close()
    per_day = 100.5 / days
    said = ann.set_budget(per_day, why="fewer")
    _, order = Orders(rig.connection, home.stream).past()
    assert (order.per_day, order.by, order.why, order.digest) == (per_day, "ann", "fewer", digest)
    assert order.threshold is not None
    found = np.array([score["score"] for score in rig.scores()], np.float32)
    above = int((found > order.threshold).sum())
    assert 90 < above <= 100
    assert order.alert_rate == pytest.approx(above / 2_000)
    assert f"{per_day:g} alerts a day" in said
    assert Replica(home).used == (digest, order.threshold)


@pytest.mark.parametrize("damage", ["flipped", "truncated", "foreign", "missing", "not finite"])
def test_a_damaged_or_foreign_model_is_not_used_and_the_reason_is_told(home: Home, damage: str) -> None:
    good = home.put("good")
    columns = [Column("of.another.stream", "numeric"), Column("kind", "categorical")]
    bad = home.put("bad", columns=columns if damage == "foreign" else None)
    replica = Replica(home)
    bad = _damaged(home.settings.model_cache / bad, damage)
    send_order(home.rig.connection, home.stream, order_of("use", bad, why="test", by="ann"))
    replica.follow(lambda: bad in replica.serving.unusable)
    reasons = {
        "flipped": "sha256",
        "truncated": "bytes; expected",
        "foreign": "columns that the stream does not have",
        "missing": "MLflow at",
        "not finite": "contains values that are not finite",
    }
    assert reasons[damage] in replica.serving.unusable[bad]
    assert replica.serving.champion.digest == good
    assert Replica(home, "restarted").used[0] == (bad if damage == "foreign" else good)
    replica.close()


def _damaged(folder: Path, damage: str) -> str:
    """Damage a model in the cache; the digest by which it is ordered."""
    weights = folder / "model.safetensors"
    if damage == "flipped":
        content = bytearray(weights.read_bytes())
        content[-1] ^= 1
        weights.write_bytes(content)
    elif damage == "truncated":
        weights.write_bytes(weights.read_bytes()[:-1])
    elif damage == "missing":
        shutil.rmtree(folder)
    elif damage == "not finite":  # with a manifest that fits
        contents = {name: (folder / name).read_bytes() for name in FILES}
        arrays = load_safetensors(contents["model.safetensors"])
        next(array for name, array in arrays.items() if name.startswith("student."))[...] = np.nan
        digest = write_files(folder, contents | {"model.safetensors": save_safetensors(arrays)}, lineage={})
        folder.rename(folder.with_name(digest))
        return digest
    return folder.name
