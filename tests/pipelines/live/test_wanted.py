"""What orders add up to: the later one holds, rollbacks go further and further back, a returned model stays away."""

from datetime import datetime
from typing import Any

import msgspec
import pytest

from pipelines.contracts.messages import decode, encode
from pipelines.live.control import Kind, Order, order_of
from pipelines.live.suppressions import Suppressions
from pipelines.live.wanted import Wanted, obey_suppression


def order(kind: Kind, digest: str, **more: Any) -> Order:
    return order_of(kind, digest, why="test", by="ann", **more)


def after(*orders: Order) -> Wanted:
    return Wanted.by(orders)


def test_rollbacks_go_further_and_further_back() -> None:
    wanted = after(*(order("use", digest) for digest in "abc"))
    seen = []
    while (to := wanted.rollback_to) is not None:
        wanted = wanted.after(order("rollback", to))
        seen.append((wanted.digest, wanted.is_proven))
    assert seen == [("b", True), ("a", True)]
    assert wanted.after(order("use", "d")).rollback_to == "a"
    assert not wanted.after(order("use", "d")).is_proven


def test_an_alias_is_followed_once_however_many_replicas_announce_it() -> None:
    wanted = after(order("follow", "a"), order("use", "b"), order("follow", "a"))
    assert (wanted.digest, wanted.alias) == ("b", "a")
    assert wanted.after(order("follow", "c")).digest == "c"


def test_a_returned_model_is_followed_no_more_until_a_person_orders_it() -> None:
    wanted = after(order("follow", "a"), order("follow", "b"), order("return", "a", refused="b"))
    assert (wanted.digest, wanted.is_proven, wanted.rollback_to) == ("a", True, None)
    moved = wanted.after(order("follow", "c")).after(order("follow", "b"))
    assert (moved.digest, moved.alias) == ("c", "b")
    forced = moved.after(order("use", "b"))
    assert (forced.digest, forced.refused) == ("b", {})


def test_a_late_return_of_a_model_that_is_no_longer_used_changes_no_model() -> None:
    wanted = after(order("use", "a"), order("use", "b"), order("use", "c"), order("return", "a", refused="b"))
    assert (wanted.digest, wanted.rollback_to) == ("c", "a")


def test_a_threshold_belongs_to_its_model() -> None:
    wanted = after(order("use", "a"), order("threshold", "a", threshold=0.9), order("use", "b"))
    assert dict(wanted.thresholds) == {"a": (0.9, None)}
    assert not wanted.after(order("threshold", "a")).thresholds


@pytest.mark.parametrize("change", ['"threshold":1.5', '"threshold":-0.1', '"kind":"stop"', '"alert_rate":"x"'])
def test_an_order_that_makes_no_sense_is_none(change: str) -> None:
    good = encode(order("threshold", "a", threshold=0.5))
    assert decode(good, Order).threshold == 0.5
    name = change.partition(":")[0]
    parts = [part for part in good.decode()[1:-1].split(",") if not part.startswith(name)]
    with pytest.raises(msgspec.ValidationError):
        decode(("{" + ",".join([*parts, change]) + "}").encode(), Order)


def test_of_what_was_returned_meanwhile_none_is_used_again() -> None:
    given = [("use", "a"), ("use", "b"), ("use", "c")]
    orders = [order_of(kind, digest, why="", by="ann") for kind, digest in given]  # type: ignore[arg-type]
    wanted = Wanted.by(orders)
    for refused, back in (("b", "a"), ("c", "b")):
        wanted = wanted.after(order_of("return", back, why="bad", by="r", refused=refused))
    assert wanted.digest == "a"


@pytest.mark.parametrize("until", ["9999-12-31T23:59:59.9999Z", "0001-01-01T00:00:00+14:00", "2026-12-24T00:00:00Z"])
def test_any_time_that_an_order_may_name_can_be_obeyed(until: str) -> None:
    suppressions = Suppressions()
    order = order_of("suppress", "", why="", by="ann", entity="card", id="7", until=datetime.fromisoformat(until))
    obey_suppression(suppressions, order)
    assert len(suppressions) == 1
