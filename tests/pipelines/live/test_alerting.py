"""From a folded block to messages: one outcome for each event, and the same ones however the block is cut."""

from collections.abc import Sequence

import pytest
from msgspec.structs import replace

from pipelines.contracts.block import Block
from pipelines.contracts.decode import Decoder
from pipelines.contracts.messages import Alert, Refused, Score, decode
from pipelines.features.state import State
from pipelines.kafka.port import Message
from pipelines.live import alerting
from pipelines.live.alerting import outcomes_of, without_scores
from pipelines.order import EVENT, Source, SourceClock
from pipelines.record import Received
from tests.pipelines.live.live_scorer import Linear
from tests.pipelines.live.simulated import START_MS, STREAM, event_of

SCORED, REFUSED, REPEATED = [0, 1, 3, 5], 2, 4


@pytest.fixture
def block() -> Block:
    """Six events: the third is broken, the fifth repeats the second; amounts rise."""
    values = [event_of(i, card=1, shop=i, at_ms=START_MS + i, amount=10.0**i) for i in range(6)]
    values[REFUSED], values[REPEATED] = b"{", values[1]
    clock = SourceClock(Source(EVENT, 0))
    records = [Received("small.events", 0, i, START_MS + i, b"1", value) for i, value in enumerate(values)]
    return State(STREAM, 2).fold(Decoder(STREAM).block([clock.item(record) for record in records]))


def of_kind(messages: Sequence[Message], kind: str) -> list[Message]:
    return [message for message in messages if message.topic == STREAM.topic(kind)]


def test_every_event_has_one_score_or_one_dead_letter_and_alerts_come_beside(block: Block) -> None:
    model = Linear(STREAM)
    messages, n_alerts = outcomes_of(block, STREAM, model)
    scores = [decode(message.value, Score) for message in of_kind(messages, "scores")]
    letters = [decode(message.value, Refused) for message in of_kind(messages, "refused")]
    alerts = [decode(message.value, Alert) for message in of_kind(messages, "alerts")]
    assert [score.source.offset for score in scores] == SCORED
    assert [(letter.source.offset, letter.rule, letter.duplicate_of) for letter in letters] == [
        (REFUSED, "bad_json", None),
        (REPEATED, "duplicate", 1),
    ]
    assert [score.source.offset for score in scores if score.alert] == [alert.source.offset for alert in alerts] == [5]
    assert n_alerts == 1
    assert alerts[0].features["amount"] == 1e5
    assert alerts[0].entities == {"card": "1", "shop": "5"}
    assert {message.key for message in messages} == {b"1"}


def test_messages_do_not_depend_on_how_the_block_is_cut(block: Block) -> None:
    model = Linear(STREAM)
    whole = outcomes_of(block, STREAM, model).messages
    apart = [m for i in range(len(block)) for m in outcomes_of(block.take(slice(i, i + 1)), STREAM, model).messages]
    for kind in ("scores", "alerts", "refused"):
        assert of_kind(apart, kind) == of_kind(whole, kind)


def test_packed_scores_are_the_same_scores_in_fewer_records(block: Block, monkeypatch: pytest.MonkeyPatch) -> None:
    model, stream = Linear(STREAM), replace(STREAM, packed_scores=True)
    plain, packed = outcomes_of(block, STREAM, model), outcomes_of(block, stream, model)
    lines = [message.value for message in of_kind(plain.messages, "scores")]
    (record,) = of_kind(packed.messages, "scores")
    assert record.value is not None
    assert record.value.split(b"\n") == lines
    assert (record.key, record.partition) == (None, 0)
    headers = dict(record.headers)
    assert headers["ce_id"] == f"{STREAM.topic('events')}/0/0-5/packed_scores".encode()
    assert headers["content-type"] == b"application/x-ndjson"
    for kind in ("alerts", "refused"):
        assert of_kind(packed.messages, kind) == of_kind(plain.messages, kind)
    monkeypatch.setattr(alerting, "PACKED_BYTES", 2 * len(lines[0] or b""))
    several = of_kind(outcomes_of(block, stream, model).messages, "scores")
    assert [line for message in several for line in (message.value or b"").split(b"\n")] == lines
    assert len(several) == 3


def test_without_scores_every_scored_event_becomes_a_dead_letter(block: Block) -> None:
    messages, n_alerts = outcomes_of(without_scores(block), STREAM, Linear(STREAM), short=True)
    letters = [decode(message.value, Refused) for message in of_kind(messages, "refused")]
    assert len(letters) == len(messages) == len(block)
    assert n_alerts == 0
    assert [letter.source.offset for letter in letters if letter.rule == "unpublishable"] == SCORED
    assert letters[REPEATED].duplicate_of == 1
    assert not any(letter.raw_base64 for letter in letters)
