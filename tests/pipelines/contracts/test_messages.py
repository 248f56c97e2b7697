"""What is published: the names that readers lean on, and the format that each kind of message carries."""

import msgspec
import pytest

from pipelines.contracts.contract import RULES, Refusal
from pipelines.contracts.messages import RecordSource, cloudevent_headers, encode, refused_of

SOURCE = RecordSource("payments.events", 0, 7)


def test_a_refused_message_says_how_to_fix_the_event() -> None:
    letter = msgspec.json.decode(encode(refused_of(Refusal("bad_json", "truncated"), SOURCE, b"{")))
    assert (letter["rule"], letter["fix"]) == ("bad_json", RULES["bad_json"])
    assert "mend" not in letter  # its name in formats 1 and 2


@pytest.mark.parametrize(
    ("kind", "version"),
    [
        ("scores", b"2"),
        ("alerts", b"2"),
        ("alert_update", b"1"),
        ("alert_overflow", b"1"),
        ("alert_suppressed", b"1"),
        ("review", b"1"),
        ("scoring_delayed", b"1"),
        ("refused", b"3"),
    ],
)
def test_each_kind_of_message_carries_its_own_format(kind: str, version: bytes) -> None:
    headers = dict(cloudevent_headers(kind, "payments", "payments.events/0/7"))
    assert headers["ce_formatversion"] == version
    assert headers["ce_type"] == f"unmask.{kind}".encode()
