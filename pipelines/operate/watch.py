"""The continuous audit: follows events and outcomes as they come, in bounded memory, and continues after a restart."""

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec

from pipelines.contracts.contract import UNDECODABLE
from pipelines.contracts.stream import Stream
from pipelines.errors import BrokerError, LoginError, RestoreError
from pipelines.features.draft import sync
from pipelines.kafka import topics
from pipelines.kafka.connection import Connection
from pipelines.kafka.port import Position, Reader
from pipelines.kafka.progress import progress_of, read_progress
from pipelines.lake.audit import event_id_reader
from pipelines.operate.books import KINDS, MOST_OPEN, Books, OpenEvent, Problem
from pipelines.record import Received

log = logging.getLogger(__name__)

READ = ("events", "scores", "refused", "progress")
CHECK_EVERY_S = 1.0
STUCK_S = 10.0
SILENT_S = 5.0
_RETRY_S = 2.0
_POLL_RECORDS = 2_000


@dataclass(frozen=True)
class Watched:
    """The state of the continuous audit. `n_open` events are not scored yet, `n_behind` of them were not read yet.

    `oldest`: partition, offset and age in seconds of the oldest event that was read and has no outcome.
    `n_unaudited`: events that Kafka had deleted before they were read. `trouble`: why Kafka cannot be read.
    """

    n_events: int
    n_scored: int
    n_refused: int
    n_duplicates: int
    n_open: int
    n_behind: int
    n_unaudited: int
    oldest: tuple[int, int, float] | None
    n_problems: Mapping[str, int]
    trouble: str = ""

    @property
    def holds(self) -> bool:
        """Whether no problem was found so far."""
        return not any(self.n_problems.values())

    def words(self) -> str:
        """One line of text.

        >>> Watched(9, 5, 2, 1, 3, 0, 0, (0, 7, 2.5), {"missing": 1}).words()
        '9 events = 5 scored + 2 refused + 1 duplicates; 3 are not scored yet, the oldest (0:7) for 2.5 s; 1 missing'
        """
        oldest = ", the oldest ({}:{}) for {:,.1f} s".format(*self.oldest) if self.oldest else ""
        words = [
            f"{self.n_events:,} events = {self.n_scored:,} scored + {self.n_refused:,} refused + "
            f"{self.n_duplicates:,} duplicates",
            f"{self.n_open:,} are not scored yet{oldest}",
            ", ".join(f"{n:,} {kind.replace('_', ' ')}" for kind, n in self.n_problems.items() if n) or "no problems",
        ]
        words += [f"{self.n_behind:,} are not read yet"] if self.n_behind > MOST_OPEN else []
        words += [f"{self.n_unaudited:,} were deleted before they were read"] if self.n_unaudited else []
        words += [self.trouble] if self.trouble else []
        return "; ".join(words)


class _Kept(msgspec.Struct, kw_only=True):
    """What is written to the file, to continue from there."""

    topic_ids: dict[str, str]
    books: dict[int, Books]
    n_unaudited: int = 0


@dataclass
class _Check:
    """What was known at one moment, and the ends of the topics after it: what is open at those ends is decided.

    An outcome and the progress record that tells of it are written in one transaction.
    """

    told: int
    early: frozenset[int]
    ends: Mapping[str, int]


class Watch:
    """Compares each event with its outcome as they come; see `Books` for the problems it finds.

    Memory: for each partition at most `MOST_OPEN` events and outcomes that wait for each other, and what one fetch
    brings: about 10 MB. If events are scored too slowly, events are not read until outcomes come; what was published
    out of sight of this audit is read from where it stopped.

    Args:
        kept: file with the books; it is read at the start and written with every report.
        start: where new books begin: at the first event that was to be scored ("earliest"), or with what is scored
            from now on.

    Raises:
        BrokerError: Kafka does not answer, or nothing has been scored yet.
        RestoreError: a progress record was not written by Unmask.
    """

    def __init__(
        self, connection: Connection, stream: Stream, *, kept: Path, start: Literal["earliest", "latest"] = "earliest"
    ) -> None:
        self._connection, self._stream, self._file = connection, stream, kept
        self._id_of = event_id_reader(stream)
        self._kind_of = {stream.topic(kind): kind for kind in READ}
        self._held: set[Position] = set()
        self._checks: dict[int, _Check] = {}
        self._ends: dict[Position, int] = {}
        self._trouble = ""
        self._moved_s = self._checked_s = self._answered_s = time.monotonic()
        self._anew: set[int] = set()
        self._kept = self._opened(start)

    @property
    def books(self) -> Mapping[int, Books]:
        """The books of every partition."""
        return self._kept.books

    def run(
        self,
        should_stop: Callable[[], bool],
        *,
        every_s: float,
        on_report: Callable[[Watched], None],
        on_problem: Callable[[Problem], None],
    ) -> Watched:
        """Follow until `should_stop()`; returns the last report. While Kafka does not answer, it is asked again.

        Args:
            on_report: called every `every_s` seconds.
            on_problem: called for each problem as it is found.

        Raises:
            LoginError: Kafka rejects the login.
            RestoreError: a progress record was not written by Unmask.
        """
        due_s = time.monotonic() + every_s
        while not should_stop():
            try:
                with self._reader() as reader:
                    self._trouble = ""
                    while not should_stop():
                        for problem in self._step(reader):
                            on_problem(problem)
                        if time.monotonic() >= due_s:
                            due_s = time.monotonic() + every_s
                            on_report(self._report())
            except LoginError:
                raise
            except BrokerError as error:
                log.warning("%s; trying again", error)
                self._trouble = str(error)
                on_report(self._report())
                time.sleep(_RETRY_S)
        return self._report()

    def _report(self) -> Watched:
        self._write()
        books, now_ms = self.books.values(), time.time() * 1000
        oldest = min(((event.at_ms, p, offset) for p, offset, event in map(_first, books) if event), default=None)
        behind = [self._ends.get(self._at(b, "events"), 0) - b.at["events"] for b in books]
        return Watched(
            n_events=sum(b.n_events for b in books),
            n_scored=sum(b.n_scored for b in books),
            n_refused=sum(b.n_refused for b in books),
            n_duplicates=sum(b.n_duplicates for b in books),
            n_open=sum(len(b.open) for b in books) + sum(max(n, 0) for n in behind),
            n_behind=sum(max(n, 0) for n in behind),
            n_unaudited=self._kept.n_unaudited,
            oldest=(*oldest[1:], max(now_ms - oldest[0], 0.0) / 1000) if oldest else None,
            n_problems={kind: sum(b.n_problems[kind] for b in books) for kind in KINDS},
            trouble=self._trouble or self._silence(),
        )

    def _silence(self) -> str:
        silent_s = time.monotonic() - self._answered_s
        return f"Kafka has not answered for {silent_s:.0f} s" if silent_s > SILENT_S else ""

    def _opened(self, start: Literal["earliest", "latest"]) -> _Kept:
        """The books in the file, or new ones."""
        ids = topics.topic_ids(self._connection, [self._stream.topic(kind) for kind in READ])
        partitions = [p for _, p in topics.partitions_of(self._connection, self._stream.topic("progress"))]
        try:
            kept = msgspec.json.decode(self._file.read_bytes(), type=_Kept)
        except FileNotFoundError:
            kept = _Kept(topic_ids=ids, books={})
        except UNDECODABLE as error:
            raise RestoreError(f"{self._file} is not a file of this audit ({error}); move it away") from error
        if kept.topic_ids != ids:
            log.warning("the topics were deleted and created again since the last audit: it begins anew")
            kept = _Kept(topic_ids=ids, books={})
        for p in partitions:
            if p not in kept.books:
                kept.books[p] = self._new_books(p, start)
        return kept

    def _new_books(self, partition: int, start: Literal["earliest", "latest"]) -> Books:
        spans = topics.bounds(self._connection, [self._stream.topic(kind) for kind in READ])
        here = {kind: spans[self._stream.topic(kind), partition] for kind in READ}
        progress = read_progress(self._connection, self._stream, partition)
        if progress is None:
            raise BrokerError(
                f"{self._stream.topic('progress')} [{partition}] has no progress record: nothing has been scored yet; "
                "start the scorer first"
            )
        begin = progress.next_offset if start == "latest" else max(progress.start, here["events"][0])
        at = {"events": begin, "progress": here["progress"][1]}
        for kind in ("scores", "refused"):
            first, end = here[kind]
            at[kind] = end if start == "latest" else max(first, progress.outcomes_from.get(kind, 0))
        return Books.of(partition, progress, begin=begin, at=at)

    def _reader(self) -> Reader:
        """A reader that continues where the books are. What retention has deleted begins anew."""
        spans = topics.bounds(self._connection, [self._stream.topic(kind) for kind in READ])
        for p, books in list(self.books.items()):
            late = {kind: spans[self._at(books, kind)][0] - books.at[kind] for kind in READ}
            if max(late.values()) > 0:
                log.warning("partition %d: Kafka has deleted records that were not audited: it begins anew", p)
                self._kept.n_unaudited += max(0, late["events"])
                self._kept.books[p] = self._new_books(p, "latest")
        self._checks.clear()
        self._held.clear()
        return self._connection.reader(self._positions(), max_records=_POLL_RECORDS)

    def _step(self, reader: Reader) -> Iterator[Problem]:
        self._hold(reader)
        by_position: dict[Position, list[Received]] = {}
        for record in reader.poll(timeout_ms=100):
            by_position.setdefault((record.topic, record.partition), []).append(record)
        # Events first: most outcomes then find their event.
        for (topic, p), records in sorted(by_position.items(), key=lambda one: READ.index(self._kind_of[one[0][0]])):
            self._moved_s = time.monotonic()
            yield from self._read(self._kind_of[topic], p, records)
        for books in self.books.values():
            for kind in READ:  # also past control markers
                books.at[kind] = max(books.at[kind], reader.position(self._at(books, kind)))
        if self._anew:
            self._begin_anew(reader)
        yield from self._check(reader)

    def _read(self, kind: str, partition: int, records: list[Received]) -> Iterable[Problem]:
        books = self.books[partition]
        if kind == "events":
            return books.events(records, self._id_of)
        if kind != "progress":
            events = self._stream.topic("events")
            return [problem for record in records for problem in books.outcomes(kind, record, events)]
        for record in records:
            progress = progress_of(record)
            if books.begins_anew(progress):
                self._anew.add(partition)
            books.told = progress.next_offset
        return ()

    def _begin_anew(self, reader: Reader) -> None:
        """After a recovery, earlier outcomes do not count."""
        for p in self._anew:
            log.warning("partition %d: `unmask recover` has changed the progress: its audit begins anew", p)
            self._kept.books[p] = self._new_books(p, "earliest")
        self._anew.clear()
        self._checks.clear()
        self._held.clear()
        reader.assign(self._positions())

    def _positions(self) -> dict[Position, int]:
        return {self._at(books, kind): books.at[kind] for books in self.books.values() for kind in READ}

    def _at(self, books: Books, kind: str) -> Position:
        return self._stream.topic(kind), books.partition

    def _hold(self, reader: Reader) -> None:
        """Read no more of what already waits for the other side, until half of it is gone."""
        held = set()
        for books in self.books.values():
            waiting = {"events": len(books.open)} | (books.n_early if len(books.early) > MOST_OPEN // 2 else {})
            for kind, n in waiting.items():
                position = self._at(books, kind)
                if n >= MOST_OPEN or (n > MOST_OPEN // 2 and position in self._held):
                    held.add(position)
        if held != self._held:
            self._held = held
            reader.hold(held)

    def _check(self, reader: Reader) -> Iterator[Problem]:
        """Decide what is missing and what is stray."""
        if time.monotonic() - self._checked_s >= CHECK_EVERY_S:
            self._checked_s = time.monotonic()
            if answer := reader.ends():
                self._answered_s = self._checked_s
            self._ends |= answer
            for p, books in self.books.items():
                ends = {kind: self._ends.get(self._at(books, kind)) for kind in ("scores", "refused", "progress")}
                if p not in self._checks and None not in ends.values():
                    self._checks[p] = _Check(books.told, frozenset(books.early), ends)  # type: ignore[arg-type]
        for p, check in list(self._checks.items()):
            books = self.books[p]
            passed = {kind for kind, end in check.ends.items() if books.at[kind] >= end}
            if "progress" in passed and check.early:
                yield from books.foreign(check.early)
                check.early = frozenset()
            if {"scores", "refused"} <= passed:
                yield from books.lost(check.told)
                if not check.early:
                    del self._checks[p]
        yield from self._stuck()

    def _stuck(self) -> Iterator[Problem]:
        """Events whose outcomes do not come although `MOST_OPEN` later ones have come: those are published in order."""
        if time.monotonic() - self._moved_s < STUCK_S:
            return
        for books in self.books.values():
            held = {kind for kind in READ if self._at(books, kind) in self._held}
            if "events" in held and len(held) > 1:
                yield from books.lost(books.told)

    def _write(self) -> None:
        """Write the books; after a crash or power cut, the file is complete."""
        self._file.parent.mkdir(parents=True, exist_ok=True)
        draft = self._file.with_suffix(".draft")
        draft.write_bytes(msgspec.json.encode(self._kept))
        sync(draft)
        draft.replace(self._file)
        sync(self._file.parent)


def _first(books: Books) -> tuple[int, int, OpenEvent | None]:
    """Partition and offset of the oldest open event, and the event."""
    offset, event = next(iter(books.open.items()), (0, None))
    return books.partition, offset, event
