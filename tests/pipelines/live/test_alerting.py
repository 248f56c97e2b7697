"""From a folded block to messages: one outcome for each event, and the same ones however the block is cut."""

from collections.abc import Sequence

import msgspec
import numpy as np
import pytest
from msgspec.structs import replace
from numpy.typing import NDArray

from pipelines.contracts.alert_memory import AlertMemory
from pipelines.contracts.block import Block
from pipelines.contracts.decode import Decoder
from pipelines.contracts.messages import (
    Alert,
    AlertOverflow,
    AlertUpdate,
    Refused,
    Review,
    Score,
    SuppressedAlert,
    decode,
    decode_alert,
)
from pipelines.contracts.stream import StormRules
from pipelines.contracts.suppression import Suppression
from pipelines.features.state import State
from pipelines.kafka.port import Message
from pipelines.live import score_records
from pipelines.live.alerting import outcomes_of, without_scores
from pipelines.live.storms import Storm
from pipelines.live.suppressions import Suppressions
from pipelines.order import EVENT, Source, SourceClock
from pipelines.record import Received
from tests.pipelines.live.live_scorer import Explained, Linear
from tests.pipelines.live.simulated import START_MS, STREAM, event_of

SCORED, REFUSED, REPEATED = [0, 1, 3, 5], 2, 4


@pytest.fixture
def block() -> Block:
    """Six events: the third is broken, the fifth repeats the second; amounts rise."""
    values = [event_of(i, card=1, shop=i, at_ms=START_MS + i, amount=10.0**i) for i in range(6)]
    values[REFUSED], values[REPEATED] = b"{", values[1]
    clock = SourceClock(Source(EVENT, 0))
    records = [Received("small.events", 0, i, START_MS + i, b"1", value) for i, value in enumerate(values)]
    return State(STREAM, 2).fold(Decoder(STREAM).block(clock.run(records)))


def of_kind(messages: Sequence[Message], kind: str) -> list[Message]:
    return [message for message in messages if message.topic == STREAM.topic(kind)]


def test_every_event_has_one_score_or_one_dead_letter_and_alerts_come_beside(block: Block) -> None:
    model = Linear(STREAM)
    messages, n_alerts, *_ = outcomes_of(block, STREAM, model)
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
    monkeypatch.setattr(score_records, "PACKED_BYTES", 2 * len(lines[0] or b""))
    several = of_kind(outcomes_of(block, stream, model).messages, "scores")
    assert [line for message in several for line in (message.value or b"").split(b"\n")] == lines
    assert len(several) == 3


def after(block: Block, ms: int) -> Block:
    """The repeated event of the block, so much later."""
    late = block.take(np.array([REPEATED]))
    late.arrival_ms[:] += ms
    return late


class Alarmed(Linear):
    """A model whose scores are all the same and over its threshold."""

    threshold = 0.5
    n_explained = 0

    def score(self, numeric: NDArray[np.float64], categorical: NDArray[np.uint64]) -> NDArray[np.float32]:
        return np.full(len(numeric), 0.75, np.float32)

    def explain(self, numeric: NDArray[np.float64], categorical: NDArray[np.uint64]) -> Sequence[Explained]:
        self.n_explained += len(numeric)
        return super().explain(numeric, categorical)


def test_a_burst_of_a_card_is_one_alert_with_updates_and_any_later_event_closes_it(block: Block) -> None:
    stream = replace(STREAM, storms=StormRules(within_ms=5))
    storm = Storm(stream, AlertMemory(), partition=0, n_partitions=2)
    messages = of_kind(outcomes_of(block.take(slice(4)), stream, Alarmed(stream), storm=storm).messages, "alerts")
    full, update = (decode_alert(message.value) for message in messages)
    assert isinstance(full, Alert)
    assert isinstance(update, AlertUpdate)
    assert (full.group_id, full.count, update.group_id, update.count) == (full.alert_id, 1, full.alert_id, 2)
    assert (update.event_id, update.entities, update.closed) == ("1", {"card": "1"}, False)
    assert [message.key for message in messages] == [b"1", b"1"]
    assert [dict(m.headers)["ce_type"] for m in messages] == [b"unmask.alerts", b"unmask.alert_update"]
    assert dict(messages[1].headers)["ce_id"] == f"{STREAM.topic('events')}/0/1/alert_update".encode()
    outcomes = outcomes_of(after(block, 10), stream, Alarmed(stream), storm=storm)
    (closing,) = of_kind(outcomes.messages, "alerts")
    closed = decode_alert(closing.value)
    assert isinstance(closed, AlertUpdate)
    assert (closed.closed, closed.count, closed.source.offset) == (True, 3, 3)
    assert storm.memory is None


def test_only_full_alerts_are_explained_and_overflow_is_listed(block: Block) -> None:
    stream, model = replace(STREAM, storms=StormRules(per_day=2)), Alarmed(STREAM)
    storm = Storm(stream, AlertMemory(), partition=0, n_partitions=2)
    (full,) = of_kind(outcomes_of(block, stream, model, storm=storm).messages, "alerts")
    assert isinstance(decode_alert(full.value), Alert)
    assert model.n_explained == 1
    (listed,) = of_kind(outcomes_of(after(block, 100_000), stream, model, storm=storm).messages, "alerts")
    overflow = decode_alert(listed.value)
    assert isinstance(overflow, AlertOverflow)
    assert [one.offset for one in overflow.events] == SCORED[1:]
    assert (listed.key, listed.partition) == (None, 0)
    assert dict(listed.headers)["ce_id"] == f"{STREAM.topic('events')}/0/1-5/alert_overflow".encode()


def suppressed(*cards: str) -> Suppressions:
    held = Suppressions()
    for card in cards:
        told = Suppression(entity="card", id=card, until="2030", by="ann", at="2026", why="known travel")
        held.add(told, until_ms=START_MS + 5)
    return held


def test_a_suppressed_alert_is_one_short_record_and_takes_nothing_of_a_group_or_the_cap(block: Block) -> None:
    stream, model = replace(STREAM, storms=StormRules(within_ms=100, per_day=2)), Alarmed(STREAM)
    storm = Storm(stream, AlertMemory(), partition=0, n_partitions=2)
    outcomes = outcomes_of(block, stream, model, storm=storm, suppressions=suppressed("1", "2"))
    *quiet, loud = of_kind(outcomes.messages, "alerts")
    assert (outcomes.n_alerts, outcomes.n_suppressed, outcomes.n_reviews, model.n_explained) == (4, 3, 0, 1)
    for message, offset in zip(quiet, SCORED, strict=False):
        record = decode_alert(message.value)
        assert isinstance(record, SuppressedAlert)
        assert (record.source.offset, record.alert, record.suppression.why) == (offset, True, "known travel")
        headers = dict(message.headers)
        assert (headers["ce_type"], headers["ce_formatversion"]) == (b"unmask.alert_suppressed", b"1")
        assert message.key == b"1"
    full = decode_alert(loud.value)  # it arrived when the suppression had ended
    assert isinstance(full, Alert)
    assert (full.source.offset, full.count) == (5, 1)
    assert len(of_kind(outcomes.messages, "scores")) == len(SCORED)
    none = outcomes_of(block, stream, model, suppressions=suppressed("2"))
    assert (none.n_alerts, none.n_suppressed) == (4, 0)


def test_events_under_the_threshold_are_drawn_for_review_whatever_the_cut(block: Block) -> None:
    stream, quiet = replace(STREAM, review_share=0.6), Alarmed(STREAM)
    quiet.threshold = 0.75
    outcomes = outcomes_of(block, stream, quiet)
    messages = of_kind(outcomes.messages, "alerts")
    reviews = [decode_alert(message.value) for message in messages]
    assert 0 < len(reviews) < len(SCORED)
    assert (outcomes.n_alerts, outcomes.n_reviews) == (0, len(reviews))
    for review in reviews:
        assert isinstance(review, Review)
        assert (review.alert, review.threshold, set(review.features)) == (
            False,
            0.75,
            {*stream.numeric_columns, *stream.categories},
        )
    assert dict(messages[0].headers)["ce_type"] == b"unmask.review"
    apart = [m for i in range(len(block)) for m in outcomes_of(block.take(slice(i, i + 1)), stream, quiet).messages]
    assert of_kind(apart, "alerts") == messages
    loud = outcomes_of(block, stream, Alarmed(STREAM))
    assert (loud.n_alerts, loud.n_reviews) == (len(SCORED), 0), "an alert is no review"
    (short,) = {m.value for m in of_kind(outcomes_of(block, stream, quiet, short=True).messages, "alerts")[:1]}
    assert not decode_alert(short).features  # type: ignore[union-attr]


def test_an_alert_without_grouping_has_the_fields_it_always_had(block: Block) -> None:
    (message,) = of_kind(outcomes_of(block, STREAM, Linear(STREAM)).messages, "alerts")
    assert not {"group_id", "count", "kind"} & msgspec.json.decode(message.value or b"").keys()


def test_without_scores_every_scored_event_becomes_a_dead_letter(block: Block) -> None:
    messages, n_alerts, *_ = outcomes_of(without_scores(block), STREAM, Linear(STREAM), short=True)
    letters = [decode(message.value, Refused) for message in of_kind(messages, "refused")]
    assert len(letters) == len(messages) == len(block)
    assert n_alerts == 0
    assert [letter.source.offset for letter in letters if letter.rule == "unpublishable"] == SCORED
    assert letters[REPEATED].duplicate_of == 1
    assert not any(letter.raw_base64 for letter in letters)
