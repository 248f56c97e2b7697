"""The two streams: `key` has windows of the key alone, `merged` of a second entity too; no labels feed them."""

from __future__ import annotations

import msgspec

from pipelines.contracts.stream import Stream
from pipelines.contracts.stream_file import parse

_HEAD = """
[stream]
name = "bench"
event_id = "event_id"
event_time = "time"
entities = [{entities}]
[fields]
event_id = {{ type = "text", max_length = 64 }}
time = {{ type = "time" }}
customer_id = {{ type = "text", max_length = 64 }}
terminal_id = {{ type = "text", max_length = 64 }}
amount = {{ type = "number", min = 0, max = 1e6 }}
channel = {{ type = "category", max_length = 32 }}
category = {{ type = "category", max_length = 32 }}
country = {{ type = "category", max_length = 8 }}
[labels]
maturity = "7d"
column = "label"
[alerts]
budget = {{ rate = 0.005 }}
[[features]]
entity = "customer_id"
windows = ["1h", "1d", "7d", "30d", "all"]
stats = ["count"]
[[features]]
entity = "customer_id"
field = "amount"
windows = ["1d", "7d", "30d", "all"]
stats = ["mean", "std", "ratio", "zscore"]
[[features]]
entity = "customer_id"
field = "amount"
windows = ["7d", "30d"]
stats = ["sum"]
[[features]]
entity = "customer_id"
stats = ["since_last"]
"""
_TERMINAL = """
[[features]]
entity = "terminal_id"
windows = ["1d", "7d", "30d"]
stats = ["count"]
[[features]]
entity = "terminal_id"
field = "amount"
windows = ["7d", "30d"]
stats = ["mean"]
"""
FILES = {
    "key": _HEAD.format(entities='"customer_id"'),
    "merged": _HEAD.format(entities='"customer_id", "terminal_id"') + _TERMINAL,
}


def stream_of(kind: str, topics: str = "bench") -> Stream:
    """One of the streams, under topics of a name.

    >>> len(stream_of("key").columns), len(stream_of("merged").columns)
    (30, 35)
    """
    return msgspec.structs.replace(parse(FILES[kind]), topics=topics)
