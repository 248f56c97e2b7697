"""The history says what was wanted at a time, and what scored then; only moves of models count as such."""

import time
from pathlib import Path
from typing import Any

import pytest

from pipelines.contracts.messages import encode
from pipelines.kafka import topics
from pipelines.kafka.topics import KEEP_FOR_EVER
from pipelines.live.chain import hash_of
from pipelines.live.control import Kind, order_of, send_order
from pipelines.operate.history import History, read_history, scored_around, scored_at
from pipelines.record import Received
from tests.pipelines.live.rig import Rig, running
from tests.pipelines.live.test_serving import Named


def stored(*orders: tuple[int, Kind, str, dict[str, Any]]) -> list[Received]:
    """Orders by the time when they were stored, as a version that chained none wrote them."""
    values = [encode(order_of(kind, digest, why="test", by="ann", **more)) for _, kind, digest, more in orders]
    return [Received("t", 0, n, orders[n][0], None, value) for n, value in enumerate(values)]


def test_what_was_wanted_at_a_time_is_what_the_orders_until_then_add_up_to() -> None:
    found = History.of(
        stored(
            (10, "follow", "a", {}),
            (20, "promote", "b", {"version": 2}),
            (30, "threshold", "b", {"threshold": 0.5}),
            (40, "follow", "b", {}),
            (50, "shadow", "c", {}),
            (60, "return", "a", {"refused": "b"}),
        )
    )
    assert [entry.order.kind for entry in found.moves] == ["follow", "promote", "threshold", "return"]
    assert [found.wanted_at(at)[0].digest for at in (9, 10, 25, 59, 60)] == [None, "a", "b", "b", "a"]
    wanted, since = found.wanted_at(45)
    assert wanted.thresholds["b"].value == 0.5
    assert since is not None
    assert since.at_ms == 20
    assert (found.chain.n_unchained, found.chain.breaks) == (6, [])


def test_the_first_promotion_names_the_champion_before_it_and_can_be_rolled_back() -> None:
    [entry] = History.of(stored((10, "promote", "b", {"before": "a"}))).entries
    assert (entry.after.digest, entry.after.rollback_to, entry.after.alias) == ("b", "a", "b")


def test_a_promotion_uses_no_model_that_was_returned_unless_it_is_forced() -> None:
    past: list[tuple[int, Kind, str, dict[str, Any]]] = [
        (1, "use", "a", {}), (2, "promote", "b", {}), (3, "return", "a", {"refused": "b"}),
    ]  # fmt: skip
    assert History.of(stored(*past, (4, "promote", "b", {}))).entries[-1].after.digest == "a"
    forced = History.of(stored(*past, (4, "promote", "b", {"forced": True}))).entries[-1].after
    assert (forced.digest, forced.is_proven, dict(forced.refused)) == ("b", False, {})
    insisted = History.of(stored(*past, (4, "use", "b", {}))).entries[-1].after
    assert (insisted.digest, insisted.is_proven) == ("b", True)  # a person knows how its trial ended


@pytest.fixture
def rig(kafka: str, tmp_path: Path) -> Rig:
    return Rig(kafka, tmp_path)


def test_what_scored_around_a_time_is_in_the_progress_records(rig: Rig) -> None:
    topics.create_topics(rig.connection, {rig.stream.topic("control"): 1}, config=KEEP_FOR_EVER)
    scorer = rig.scorer(model=Named(rig, "a"))
    before_ms = round(time.time() * 1000)
    with running(scorer):
        for name in ("a", "b"):
            send_order(rig.connection, rig.stream, order_of("use", name, why="test", by="ann"))
            if name == "b":
                scorer.serving.swap(Named(rig, "b"))
            for _ in range(3):
                rig.send(50)
                rig.wait_until_out()
    after_ms = round(time.time() * 1000)
    found = scored_around(rig.connection, rig.stream, after_ms)
    assert [(one.model, one.n) for one in found] == [("a", 150), ("b", 150)]
    assert before_ms <= found[0].first_ms <= found[0].last_ms <= found[1].first_ms <= found[1].last_ms <= after_ms
    assert scored_at(found, found[0].first_ms) == {"a"}
    assert scored_at(found, after_ms) == {"b"}
    assert scored_around(rig.connection, rig.stream, before_ms - 3_600_000) == []
    history = read_history(rig.connection, rig.stream)
    assert history.wanted_at(after_ms)[0].digest == "b"
    assert history.hashes >= {history.chain.head, hash_of(rig.published("control")[0])}
