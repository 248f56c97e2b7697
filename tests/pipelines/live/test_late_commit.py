"""A commit that a network delays into the next transaction of the same producer: nothing lost, doubled or torn."""

import uuid
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines.errors import BrokerError
from pipelines.kafka import topics
from pipelines.kafka.connection import Connection
from pipelines.kafka.port import Adapter, Message
from pipelines.kafka.progress import read_progress, transactional_id
from pipelines.kafka.topics import KEEP_FOR_EVER
from pipelines.lake.audit import reconcile
from tests.patience import wait_until
from tests.pipelines.kafka.link import HeldCommit, Linked
from tests.pipelines.live.rig import Rig, running

HOW = pytest.mark.parametrize("is_cut", [True, False], ids=["cut", "silent"])


@HOW
def test_a_late_commit_commits_no_part_of_a_later_transaction(linked: Linked, adapter: Adapter, is_cut: bool) -> None:
    over_link, direct = Connection(linked.bootstrap, adapter=adapter), Connection(linked.broker.bootstrap)
    topic = f"late-{uuid.uuid4().hex[:12]}"
    topics.create_topics(direct, {topic: 2}, config=KEEP_FOR_EVER)

    def stored() -> list[bytes | None]:
        return [r.value for part in topics.read_between(direct, topics.bounds(direct, [topic])) for r in part]

    def pair(name: str) -> Iterator[Message]:
        """Two records in two partitions; the second one comes when the first is stored."""
        position = (topic, 0)
        with direct.reading({position: 0}) as reader:
            before = reader.ends(timeout_ms=60_000)[position]
            yield Message(topic, f"{name} first".encode(), partition=0)
            wait_until(lambda: reader.ends().get(position, 0) > before)
        yield Message(topic, f"{name} second".encode(), partition=1)

    seen: list[list[bytes | None]] = []
    commit = HeldCommit(topic, is_cut=is_cut, then=lambda: seen.append(stored()))
    writers = [over_link.transactional_writer(topic)]
    try:
        for name in ("a", "b", "c", "d"):
            if name == "b":
                linked.link.hold(commit)
            while True:  # as a lane does it
                try:
                    writers[-1].commit(pair(name))
                    break
                except BrokerError:
                    writers[-1].close()
                    writers.append(over_link.transactional_writer(topic))
                    if f"{name} first".encode() in stored():
                        break
    finally:
        linked.link.hold(None)
        writers[-1].close()
    print(f"the late commit was answered with the error {commit.error_code}; {len(writers) - 1} producers opened again")
    assert commit.is_delivered
    assert all(b"c first" not in visible for visible in seen), "a part of an open transaction was committed"
    assert sorted(filter(None, stored())) == [f"{n} {o}".encode() for n in "abcd" for o in ("first", "second")]


@HOW
def test_a_commit_that_arrives_in_the_next_transaction_tears_nothing(
    linked: Linked, adapter: Adapter, is_cut: bool, tmp_path: Path
) -> None:
    rig = Rig(linked.broker.bootstrap, tmp_path, n_partitions=1, adapter=adapter)
    torn: list[tuple[int, int]] = []

    def look() -> None:
        """What readers see while the later transaction is open: no score beyond the progress."""
        progress = read_progress(rig.connection, rig.stream, 0)
        end = progress.next_offset if progress else 0
        torn.extend((score["source"]["offset"], end) for score in rig.scores() if score["source"]["offset"] >= end)

    commit = HeldCommit(transactional_id(rig.stream, 0), is_cut=is_cut, then=look)
    direct, rig.connection = rig.connection, Connection(linked.bootstrap, adapter=adapter)
    scorer = rig.scorer()
    rig.connection = direct
    with running(scorer) as run:
        rig.send(50)
        rig.wait_until_out()
        linked.link.hold(commit)
        try:
            rig.send(50)
            wait_until(lambda: commit.is_taken, alive=lambda: run.is_alive)
            rig.wait_until_out()
            while not commit.is_delivered:
                rig.send(50)
                rig.wait_until_out()
            rig.send(50)
            rig.wait_until_out()
        finally:
            linked.link.hold(None)
    n_rebuilt = sum(lane.n_rebuilt for lane in scorer.lanes)
    print(f"the late commit was answered with the error {commit.error_code}; {n_rebuilt} producers opened again")
    times = Counter(score["event_id"] for score in rig.scores())
    assert sum(n > 1 for n in times.values()) == 0
    assert len(times) == rig.n_sent
    assert not torn, "scores were visible before their progress"
    assert reconcile(rig.connection, rig.stream).holds
