"""The books of a partition find what was planted, and nothing else, in whatever order things are read."""

import hashlib
from collections import Counter
from typing import NamedTuple

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from pipelines.operate.books import Books, Problem
from pipelines.record import Received

EVENTS = "payments.events"
START = 2
SCORED, REFUSED, DUPLICATE = "scored", "refused", "duplicate"


class Planted(NamedTuple):
    """Events by offset, the records about them, and the problems among those."""

    events: list[Received]
    scores: list[bytes]
    letters: list[bytes]
    problems: Counter[tuple[str, int]]


def score(offset: int, event_id: str, *, topic: str = EVENTS) -> bytes:
    return msgspec.json.encode({"event_id": event_id, "source": {"topic": topic, "partition": 0, "offset": offset}})


def letter(offset: int, value: bytes, *, duplicate_of: int | None = None) -> bytes:
    source = {"topic": EVENTS, "partition": 0, "offset": offset}
    sha256 = hashlib.sha256(value).hexdigest()
    return msgspec.json.encode({"source": source, "sha256": sha256, "duplicate_of": duplicate_of})


@st.composite
def planted(draw: st.DrawFn) -> Planted:
    """A log with its outcomes; some are omitted, doubled, foreign or of another event, others unreadable."""
    n = draw(st.integers(1, 30))
    kinds = draw(st.lists(st.sampled_from([SCORED] * 4 + [REFUSED, DUPLICATE]), min_size=n, max_size=n))
    faults = draw(st.lists(st.sampled_from(["", "", "", "missing", "doubled", "mismatched"]), min_size=n, max_size=n))
    events, scores, letters = [], [], []
    problems = Counter[tuple[str, int]]()
    without_score: set[int] = set()
    for offset, kind, fault in zip(range(START, START + n), kinds, faults, strict=True):
        value = b'{"id":"e%d"}' % offset
        events.append(Received(EVENTS, 0, offset, 0, b"k", value))
        scored_before = [o for o, k in zip(range(START, offset), kinds, strict=False) if k == SCORED]
        if kind == DUPLICATE and not scored_before:
            kind = REFUSED
        if kind != SCORED or fault == "missing":
            without_score.add(offset)
        if fault:
            problems[fault, offset] += 1
        if fault == "missing":
            continue
        wrong = fault == "mismatched"
        if kind == SCORED:
            line = score(offset, f"other{offset}" if wrong else f"e{offset}")
            scores += [line] * (2 if fault == "doubled" else 1)
        else:
            original = scored_before[-1] if kind == DUPLICATE else None
            if original in without_score:
                problems["unscored_duplicates", offset] += 1
            line = letter(offset, b"other" if wrong else value, duplicate_of=original)
            letters += [line] * (2 if fault == "doubled" else 1)
    for offset in draw(st.lists(st.integers(0, START - 1), max_size=2)):
        scores.append(score(offset, "e"))
        problems["stray", offset] += 1
    if draw(st.booleans()):
        scores.append(score(START + n + 5, "e"))
        problems["stray", START + n + 5] += 1
    if draw(st.booleans()):
        scores.append(score(START, "e", topic="other.events"))
        problems["stray", START] += 1
    return Planted(events, scores, letters, problems)


@given(planted(), st.data(), st.booleans())
def test_what_is_planted_is_found_whatever_is_read_first(log: Planted, data: st.DataObject, packed: bool) -> None:
    n_before = START + len(log.events)
    scores = [b"\n".join(log.scores[at : at + 3]) for at in range(0, len(log.scores), 3)] if packed else log.scores
    left = {
        "events": list(log.events),
        "scores": _records("scores", scores),
        "refused": _records("refused", log.letters),
    }
    books = blank_books()
    found: list[Problem] = []
    while any(left.values()):
        kind = data.draw(st.sampled_from([kind for kind, records in left.items() if records]))
        n = data.draw(st.integers(1, 5))
        now, left[kind] = left[kind][:n], left[kind][n:]
        if kind == "events":
            found += books.events(now, _event_id)
        else:
            found += [problem for record in now for problem in books.outcomes(kind, record, EVENTS)]
        if data.draw(st.booleans()):
            books = msgspec.json.decode(msgspec.json.encode(books), type=Books)  # a restart
    books.told = n_before
    found += books.foreign(list(books.early))
    found += books.lost(n_before)
    assert Counter((problem.kind, problem.offset) for problem in found) == log.problems
    assert books.n_events == len(log.events)
    assert sum(books.n_problems.values()) == log.problems.total()
    assert (books.open, books.early, books.awaited) == ({}, {}, {})


def blank_books() -> Books:
    at = {"events": START, "scores": 0, "refused": 0}
    return Books(partition=0, start=START, outcomes_from={}, begin=START, at=at, told=0)


def _records(topic: str, values: list[bytes]) -> list[Received]:
    return [Received(topic, 0, offset, 0, None, value) for offset, value in enumerate(values)]


def _event_id(value: bytes | None) -> str | None:
    return str(msgspec.json.decode(value or b"")["id"])


def test_what_is_no_outcome_is_named_by_its_place() -> None:
    books, bad = blank_books(), Received("scores", 0, 7, 0, None, b"no JSON")
    assert books.outcomes("scores", bad, EVENTS) == [Problem("unreadable", 0, 7)]
    assert books.outcomes("scores", bad, EVENTS) == []  # it was read before


def test_an_outcome_of_an_offset_without_an_event_is_stray() -> None:
    def record(offset: int) -> Received:
        return Received(EVENTS, 0, offset, 0, b"k", b'{"id":"e%d"}' % offset)

    books = blank_books()
    books.outcomes("scores", Received("scores", 0, 0, 0, None, score(START + 1, "marker")), EVENTS)
    assert books.events([record(START)], _event_id) == []
    assert books.events([record(START + 2)], _event_id) == [Problem("stray", 0, START + 1)]  # no event lies between
