"""An event as the peers decode it."""

from __future__ import annotations

import msgspec


class Event(msgspec.Struct):
    """A payment."""

    event_id: str
    time: int
    customer_id: str
    terminal_id: str
    amount: float
    channel: str | None = None
    category: str | None = None
    country: str | None = None
