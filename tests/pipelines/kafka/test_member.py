"""Members of a group divide the partitions of a topic; each of them sees its share, also when members come and go."""

import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from pipelines.errors import FencedError
from pipelines.kafka import topics
from pipelines.kafka.connection import Connection
from pipelines.kafka.port import Adapter, Member
from tests.patience import wait_until

ALL = frozenset(range(4))


class Group:
    """A group on a topic of its own."""

    def __init__(self, connection: Connection) -> None:
        self.name, self._connection, self._opened = f"group-{uuid.uuid4().hex[:8]}", connection, ExitStack()
        topics.create_topics(connection, {self.name: len(ALL)}, config={})

    def join(self, instance_id: str | None = None) -> Member:
        member = self._connection.member(self.name, self.name, instance_id=instance_id, session_ms=6_000)
        self._opened.callback(member.close)
        return member

    def close(self) -> None:
        self._opened.close()


@pytest.fixture
def group(kafka: str, adapter: Adapter) -> Iterator[Group]:
    group = Group(Connection(kafka, adapter=adapter))
    yield group
    group.close()


def shares(*members: Member) -> list[frozenset[int]]:
    return [member.assigned().partitions for member in members]


def wait_until_divided(*members: Member) -> None:
    """Until the members have all partitions, each at least one and none two."""

    def holds() -> bool:
        found = shares(*members)
        return all(found) and sum(map(len, found)) == len(ALL) and frozenset().union(*found) == ALL

    wait_until(holds, seen=lambda: shares(*members))


def test_members_divide_the_partitions_and_one_that_leaves_gives_its_share_to_the_others(group: Group) -> None:
    first = group.join()
    wait_until_divided(first)
    before = first.assigned()
    second = group.join()
    wait_until_divided(first, second)
    assert first.assigned().generation > before.generation
    assert first.assigned().partitions < before.partitions  # it kept what it did not have to give
    second.close()
    wait_until_divided(first)


def test_a_named_member_that_returns_within_its_session_has_its_share_and_moves_nothing(group: Group) -> None:
    first, second = group.join("a"), group.join("b")
    wait_until_divided(first, second)
    before, kept = second.assigned(), first.assigned()
    second.close()
    again = group.join("b")
    wait_until(lambda: again.assigned().partitions == before.partitions, seen=again.assigned)
    assert first.assigned() == kept


def test_of_two_members_of_one_name_the_first_is_told_that_it_is_out(group: Group) -> None:
    first = group.join("a")
    wait_until_divided(first)
    second = group.join("a")
    wait_until_divided(second)
    with pytest.raises(FencedError, match="another member with the name a has joined"):
        for _ in range(600):
            first.assigned()
            time.sleep(0.1)
