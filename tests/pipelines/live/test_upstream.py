"""What comes to a scorer from outside: a link that fails, transactions of others, clocks of others."""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from pipelines.errors import BrokerError
from pipelines.kafka import topics as kafka_adapter
from pipelines.kafka.connection import Connection
from pipelines.kafka.port import Message
from pipelines.kafka.topics import KEEP_FOR_EVER
from pipelines.lake.ingest import ingest
from pipelines.lake.tables import Lake
from tests.patience import wait_until
from tests.pipelines.kafka.adapters import ADAPTERS, CLIENT
from tests.pipelines.kafka.link import Linked
from tests.pipelines.live.rig import N_PARTITIONS, Rig, running


def event(rig: Rig, partition: int) -> Message:
    """A good event of one shop; its card lies in this partition."""
    card = f"c{partition}"
    value = {"id": f"e{rig.n_sent}", "at": int(time.time() * 1000), "card": card, "shop": 1, "amount": 5.0}
    rig.n_sent += 1
    return Message(rig.stream.topic("events"), json.dumps(value).encode(), card.encode(), partition)


def test_a_link_that_gives_no_answers_for_25_s_ends_no_scorer_and_costs_no_event(
    linked: Linked, tmp_path: Path
) -> None:
    survive(linked, tmp_path, [(lambda: linked.link.swallow("answers"), 25.0), (linked.link.cut, 6.0)])


@pytest.mark.bench
@pytest.mark.parametrize("ways", [("requests",), ("answers",), ("requests", "answers")], ids="-".join)
def test_a_link_that_fails_for_60_s_ends_no_scorer_and_costs_no_event(
    linked: Linked, tmp_path: Path, ways: tuple[str, ...]
) -> None:
    survive(linked, tmp_path, [(lambda: linked.link.swallow(*ways), 60.0)])


def survive(linked: Linked, folder: Path, failures: Sequence[tuple[Callable[[], None], float]]) -> None:
    """Run a scorer over a link that fails in these ways for so many seconds, each time with a transaction open."""
    rig = Rig(linked.broker.bootstrap, folder)
    fail: list[Callable[[], None]] = []

    def fault(name: str) -> None:
        if name == "before_flush" and fail:
            fail.pop()()

    direct, rig.connection = rig.connection, Connection(linked.bootstrap, adapter=ADAPTERS[CLIENT])
    scorer = rig.scorer(fault=fault)
    rig.connection = direct
    with running(scorer) as run:
        rig.send(100)
        rig.wait_until_out()
        for act, seconds in failures:
            fail.append(act)
            rig.send(100)
            wait_until(lambda: not fail)
            time.sleep(seconds)
            assert run.error is None
            linked.link.mend()
            rig.send(100)
            rig.wait_until_out()
        assert sum(lane.n_rebuilt for lane in scorer.lanes) > 0
    scored = [score["event_id"] for score in rig.scores()]
    assert sorted(scored) == sorted(f"e{n}" for n in range(rig.n_sent))


def test_senders_of_several_versions_while_scorers_roll(kafka: str, tmp_path: Path) -> None:
    rig = Rig(kafka, tmp_path)
    versions: list[dict[str, object]] = [
        {"amount": 5.0, "pieces": 2, "country": "DE"},
        {"amount": 5.0, "pieces": 2, "country": "DE", "channel": "app", "device": {"os": "x"}},  # fields added
        {"amount": 5.0},  # fields removed
        {"amount": "5 EUR", "pieces": 2, "country": "DE"},  # a type changed
    ]
    n_each = 40
    for _ in range(3):
        with running(rig.scorer()):
            values = [
                {"id": f"e{rig.n_sent}-{n}", "at": int(time.time() * 1000), "card": "c1", "shop": 1, **versions[n % 4]}
                for n in range(4 * n_each)
            ]
            rig.send_many([json.dumps(value).encode() for value in values[: 2 * n_each]], b"c1")
            rig.wait_until_out()
        rig.send_many([json.dumps(value).encode() for value in values[2 * n_each :]], b"c1")  # while none runs
    with running(rig.scorer()):
        rig.wait_until_out()
    assert len(rig.scores()) == 9 * n_each
    assert {refused.rule for refused in rig.refused()} == {"wrong_type"}
    assert len(rig.refused()) == 3 * n_each


def test_what_an_open_transaction_wrote_is_waited_for_and_comes_in_its_turn(kafka: str, tmp_path: Path) -> None:
    rig = Rig(kafka, tmp_path)
    upstream = rig.connection.transactional_writer(f"upstream-{rig.stream.topics}")
    at = (rig.stream.topic("events"), 0)
    with running(rig.scorer()) as run, rig.connection.writer() as writer, rig.connection.reader({at: 0}) as reader:

        def messages() -> Iterator[Message]:
            [(_, end)] = reader.spans([at]).values()
            yield event(rig, 0)
            wait_until(lambda: reader.ends(timeout_ms=60_000).get(at, 0) > end)
            writer.send(event(rig, 1))
            writer.flush()
            time.sleep(1.0)
            assert run.scorer.counters.n_folded == n_before, "the later event did not wait for the open transaction"

        for _ in range(3):
            n_before = rig.n_sent
            upstream.commit(messages())
            wait_until(lambda: run.scorer.counters.n_folded == rig.n_sent, seen=lambda: run.scorer.counters.n_folded)
        assert run.scorer.counters.n_out_of_turn == 0
    upstream.close()
    assert [score["out_of_order"] for score in rig.scores()] == [False] * 6


def test_labels_that_their_sender_stamps_are_refused_at_the_start_with_what_to_do(kafka: str, tmp_path: Path) -> None:
    rig = Rig(kafka, tmp_path)
    labels = rig.stream.topic("labels")
    kafka_adapter.delete_topics(rig.connection, [labels])
    kafka_adapter.create_topics(rig.connection, {labels: N_PARTITIONS}, config=KEEP_FOR_EVER)
    told = rf"{labels} must have message.timestamp.type=LogAppendTime.*kafka-configs.sh --alter --topic {labels}"
    with pytest.raises(BrokerError, match=told):
        rig.scorer()
    with pytest.raises(BrokerError, match=told):
        ingest(rig.connection, rig.stream, Lake(tmp_path / "lake", rig.stream))
