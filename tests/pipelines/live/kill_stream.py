"""The streams of the kill test: short windows, a short duplicate memory and labels that act within the test.

`merged` has windows about shops, whose events lie in all partitions; `key` has none, so each partition is for itself.
"""

from pipelines.contracts.stream import Stream
from pipelines.contracts.stream_file import parse

N_PARTITIONS = 4
_HEAD = """
[stream]
name = "{name}"
event_id = "id"
event_time = "at"
entities = ["card", "shop"]
duplicate_memory = "15s"
max_message_bytes = 2000

[fields]
id = {{ type = "text", max_length = 40 }}
at = {{ type = "time" }}
card = {{ type = "text" }}
shop = {{ type = "int" }}
amount = {{ type = "number", min = 0, max = 100000 }}
pieces = {{ type = "int", min = 0 }}
country = {{ type = "category", max_length = 20 }}

[labels]
maturity = "2s"
lag = "1s"

[[features]]
entity = "card"
field = "amount"
windows = ["12s", "60s", "all"]
stats = ["mean", "std", "ratio", "zscore"]

[[features]]
entity = "card"
field = "country"
windows = ["60s"]
stats = ["distinct", "count"]

[[features]]
entity = "card"
stats = ["since_last"]

"""
_FRAUDS_OF_CARDS = """
[[features]]
entity = "card"
windows = ["12s"]
stats = ["fraud_rate", "fraud_count"]
"""
_SHOPS = """
[[features]]
entity = "shop"
field = "amount"
windows = ["24s"]
stats = ["sum", "min", "max"]

[[features]]
entity = "shop"
windows = ["12s"]
stats = ["fraud_rate", "fraud_count"]

[[features]]
entity = "shop"
field = "card"
windows = ["24s"]
stats = ["distinct"]
"""


TEXTS = {"merged": _HEAD + _SHOPS, "key": _HEAD + _FRAUDS_OF_CARDS}
KEY = "key-"  # begins the names of streams of that kind


def stream_named(name: str) -> Stream:
    """The stream with topics of its own, of the kind that its name says: merged, unless it begins with `KEY`."""
    return parse(TEXTS["key" if name.startswith(KEY) else "merged"].format(name=name))
