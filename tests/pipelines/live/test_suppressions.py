"""Suppressions by order: whom they concern, which holds, what is forgotten, what a hundred thousand cost."""

import time
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest

from pipelines.contracts.messages import decode, encode
from pipelines.live.control import Kind, Order, order_of
from pipelines.live.suppressions import KEPT_MS, Suppressions
from pipelines.live.wanted import Wanted, obey_suppression

UNTIL = datetime(2199, 1, 1, tzinfo=UTC)
UNTIL_MS = round(UNTIL.timestamp() * 1000)


def order(kind: Kind, id: str, **more: Any) -> Order:
    sent = order_of(kind, "", why="test", by="ann", entity="card", id=id, **more)
    return decode(encode(sent), Order)


def after(*orders: Order) -> Suppressions:
    suppressions = Suppressions()
    for one in orders:
        obey_suppression(suppressions, one)
    return suppressions


def test_of_two_orders_of_an_entity_the_later_one_holds() -> None:
    first = order("suppress", "7", until=UNTIL)
    other = order("suppress", "8", until=UNTIL)
    sooner = order("suppress", "7", until=datetime(2030, 1, 1, tzinfo=UTC))
    held = after(first, other, sooner)
    found = held.of(("card", "shop"), ("7", None), 0)
    assert found is not None
    assert (found.entity, found.id, found.until) == ("card", "7", "2030-01-01T00:00:00.000Z")
    assert (found.by, found.why) == ("ann", "test")
    assert held.of(("card", "shop"), ("7", None), UNTIL_MS - 1) is None
    assert held.of(("shop", "card"), ("7", "8"), UNTIL_MS - 1) is not None
    assert [one.id for one in held.in_effect(0)] == ["7", "8"]
    assert len(after(first, order("unsuppress", "7"), order("unsuppress", "9"))) == 0


def test_they_change_no_model_and_models_change_no_suppression() -> None:
    use = order_of("use", "a" * 64, why="test", by="ann")
    assert Wanted.by([use, order("suppress", "7", until=UNTIL)]) == Wanted.by([use])
    assert len(after(use, order("suppress", "7", until=UNTIL), use)) == 1


@pytest.mark.parametrize("until", ['"tomorrow"', '"2030-01-01T00:00:00"', "7"])
def test_an_order_until_no_time_is_none(until: str) -> None:
    sent = encode(order("suppress", "7", until=UNTIL)).replace(b'"2199-01-01T00:00:00Z"', until.encode())
    assert until.encode() in sent
    with pytest.raises(msgspec.ValidationError):
        decode(sent, Order)


def test_an_order_without_its_fields_changes_nothing() -> None:
    assert len(after(order("suppress", "7"), order_of("suppress", "", why="", by="ann", until=UNTIL))) == 0


def test_those_that_ended_are_forgotten() -> None:
    suppressions, told = Suppressions(), after(order("suppress", "7", until=UNTIL)).of(["card"], ["7"], 0)
    assert told is not None
    now_ms = round(time.time() * 1000)
    for n in range(200_000):  # half of them are over
        of_n = msgspec.structs.replace(told, id=f"{n}")
        suppressions.add(of_n, until_ms=now_ms - KEPT_MS - 60_000 if n % 2 else UNTIL_MS)
    assert 100_000 <= len(suppressions) <= 200_000
    assert len(suppressions) < 200_000 - 50_000, "it forgets as it grows"
