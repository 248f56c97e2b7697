"""Suppress the alerts of an entity for some time, take that back, and tell what is suppressed now."""

import time
from datetime import UTC, datetime

from pipelines.contracts.contract import text_of
from pipelines.contracts.stream import Stream
from pipelines.contracts.suppression import Suppression
from pipelines.errors import UnmaskError
from pipelines.kafka.connection import Connection
from pipelines.live.control import Order, Orders, order_of, send_order
from pipelines.live.suppressions import Suppressions
from pipelines.live.wanted import obey_suppression


def suppress(connection: Connection, stream: Stream, *, named: str, until_ms: int, by: str, why: str) -> str:
    """Order that an entity raises no full alert until a time; returns what was ordered, in words.

    Args:
        named: an entity and its id, such as `card=4711`.
        until_ms: ms since 1970; it concerns events that arrive before.

    Raises:
        UnmaskError: the stream has no such entity, the time is over, or there is no control topic.
    """
    entity, id = entity_of(stream, named)
    if until_ms <= time.time() * 1000:
        raise UnmaskError("--until is over; give a time in the future")
    _orders_of(connection, stream)  # whether they can be given
    until = datetime.fromtimestamp(until_ms / 1000, UTC)
    send_order(connection, stream, order_of("suppress", "", why=why, by=by, entity=entity, id=id, until=until))
    return f"no full alerts of {entity} {id} until {until:%Y-%m-%d %H:%M:%S} UTC."


def unsuppress(connection: Connection, stream: Stream, *, named: str, by: str, why: str) -> str:
    """Order that an entity raises alerts again; returns what was ordered, in words.

    Raises:
        UnmaskError: its alerts are not suppressed, the stream has no such entity, or there is no control topic.
    """
    entity, id = entity_of(stream, named)
    if not any((one.entity, one.id) == (entity, id) for one in suppressions(connection, stream)):
        raise UnmaskError(f"alerts of {entity} {id} are not suppressed; `unmask suppressions` shows which are")
    send_order(connection, stream, order_of("unsuppress", "", why=why, by=by, entity=entity, id=id))
    return f"alerts of {entity} {id} again."


def suppressions(connection: Connection, stream: Stream) -> list[Suppression]:
    """The suppressions in effect, the one that ends first first.

    Raises:
        UnmaskError: there is no control topic.
    """
    held, now_ms = Suppressions(), round(time.time() * 1000)
    for order in _orders_of(connection, stream):
        obey_suppression(held, order)
    return list(held.in_effect(now_ms))


def entity_of(stream: Stream, named: str) -> tuple[str, str]:
    """Name and id of an entity from `NAME=ID`, the id as events have it.

    Raises:
        UnmaskError: the text has no `=`, or the stream has no such entity.
    """
    entity, equals, id = named.partition("=")
    if not equals or not id or entity not in stream.entities:
        raise UnmaskError(
            f"--entity is {named!r}; it must be NAME=ID with an entity of stream {stream.name} "
            f"({', '.join(stream.entities)}), such as {stream.key}=4711"
        )
    if stream.field(entity).type == "int":
        try:
            return entity, text_of(int(id))
        except ValueError:
            raise UnmaskError(f"--entity is {named!r}; ids of {entity} are whole numbers") from None
    return entity, id


def _orders_of(connection: Connection, stream: Stream) -> list[Order]:
    orders = Orders(connection, stream)
    try:
        past = orders.past()
        if not orders.can_be_given:
            raise UnmaskError(f"{stream.topic('control')} does not exist; run `unmask topics create`")
        return past
    finally:
        orders.close()
