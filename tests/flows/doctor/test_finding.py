"""Checks that hang, fail or name a secret; the sizes of a plan."""

import threading
from collections.abc import Iterator

import pytest

from flows.doctor import sizing
from flows.doctor.finding import Check, Finding, Level, ask_all, ok
from flows.doctor.sizing import Load
from flows.streams.shipped import load


def test_a_check_that_hangs_or_fails_is_a_finding_and_the_others_are_shown() -> None:
    over = threading.Event()

    def hangs() -> Iterator[Finding]:
        yield ok("a", "quick", "x")
        over.wait()

    def fails() -> Iterator[Finding]:
        raise ValueError("http://ann:hunter2@host/x has no  answer\nfor secret")

    found = ask_all(
        [
            Check("a", "one", hangs, deadline_s=0.1),
            Check("b", "two", fails),
            Check("c", "three", lambda: [ok("c", "three", "y")]),
        ],
        secrets=["secret"],
    )
    over.set()
    assert [(one.what, one.level) for one in found] == [
        ("quick", Level.OK), ("one", Level.WARNING), ("two", Level.ERROR), ("three", Level.OK),
    ]  # fmt: skip
    assert found[1].found == "not finished within 0.1 s"
    assert found[2].found == "http://host/x has no answer for ***"


@pytest.mark.parametrize(
    ("client", "rate", "n_partitions", "warned"),
    [
        ("kafka-python", 500, 4, []),
        ("kafka-python", 9_000, 4, ["CPU"]),  # each reads all: no number is enough
        ("confluent-kafka", 9_000, 4, []),
        ("kafka-python", 4_000, 2, ["partitions"]),
    ],
)
def test_a_plan_says_whether_scorers_and_partitions_are_enough_for_a_rate(
    client: str, rate: int, n_partitions: int, warned: list[str]
) -> None:
    found = list(sizing.look(load("payments"), Load(events_per_s=rate), client, n_partitions))
    assert [one.what for one in found if one.level is Level.WARNING] == warned
    assert "rule of thumb" in next(one.found for one in found if one.what == "CPU")


def test_a_plan_grows_with_entities_and_ids_up_to_the_bound_of_the_duplicates() -> None:
    stream = load("payments")
    small = sizing.memory_bytes(stream, 1_000, 1e6, 1_000)
    assert sizing.memory_bytes(stream, 2_000, 1e6, 1_000) - small == 2 * 1_000 * 1_000
    most = sizing.memory_bytes(stream, 1_000, 1e12, 1_000)
    assert most == sizing.BASE_BYTES + 2e6 + sizing.ID_BYTES * stream.duplicate_memory_ids
