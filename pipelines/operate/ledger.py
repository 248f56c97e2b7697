"""Which refused events were sent again: claims in `<stream>.resent`, so that none is sent twice."""

import hashlib
import time
import uuid
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import msgspec

from pipelines.contracts.contract import UNDECODABLE
from pipelines.contracts.messages import decode, encode
from pipelines.contracts.stream import Stream
from pipelines.errors import RestoreError, UnmaskError
from pipelines.kafka import topics
from pipelines.kafka.connection import Connection
from pipelines.kafka.letters import Place
from pipelines.kafka.port import Message
from pipelines.record import Received

# A writer gives up a record after 60 s: then it is known whether the events of a claim were sent.
SETTLED_AFTER_S = 90.0


class ResendingError(UnmaskError):
    """Another process sends refused events again, or did so until a moment ago."""


class Claim(msgspec.Struct, frozen=True, tag="claim", tag_field="kind"):
    """A message of `<stream>.resent`: a process is about to send these events again.

    - `ends`: the end offsets of the events topic before that.
    """

    id: str
    places: list[Place]
    ends: dict[int, int]


class Settled(msgspec.Struct, frozen=True, tag="settled", tag_field="kind"):
    """A message of `<stream>.resent`: the events of a claim were sent, except `unsent`."""

    id: str
    unsent: list[Place]


class Ledger:
    """The events that were sent again. The first claim of an event wins; Kafka's order within the topic decides.

    A claim is settled when its events are sent. One that stays open belongs to a process that is still sending or has
    died; `settle_open` finds out which of its events are in the events topic.

    Raises:
        RestoreError: a record of the topic was not written by Unmask.
    """

    def __init__(self, connection: Connection, stream: Stream) -> None:
        self._connection, self._topic, self._events = connection, stream.topic("resent"), stream.topic("events")
        self._holder: dict[Place, str] = {}
        self._open: dict[str, tuple[Claim, int]] = {}  # by id: the claim and its time, ms since 1970
        self._read_to = 0
        if self._topic in topics.topic_names(connection):
            self._read(topics.bounds(connection, [self._topic])[self._topic, 0])

    def __contains__(self, place: object) -> bool:
        return place in self._holder

    def settle_open(self) -> None:
        """Settle the claims of processes that died while they were sending.

        Raises:
            ResendingError: a claim is so recent that its process may still be sending.
        """
        for claim, at_ms in list(self._open.values()):
            wait_s = at_ms / 1000 + SETTLED_AFTER_S - time.time()
            if wait_s > 0:
                raise ResendingError(
                    "refused events are being sent again by another process, or one was ended a moment ago; "
                    f"repeat this in {wait_s:.0f} s"
                )
            self.settle(claim.id, self._unsent(claim))

    def claim(self, places: Sequence[Place]) -> tuple[str, set[Place]]:
        """Claim events; returns the id of the claim, and those of them that no earlier claim holds."""
        ends = {p: end for (_, p), (_, end) in topics.bounds(self._connection, [self._events]).items()}
        claim = Claim(uuid.uuid4().hex, list(places), ends)
        self._write(claim)
        return claim.id, {place for place in places if self._holder.get(place) == claim.id}

    def settle(self, claim_id: str, unsent: Iterable[Place] = ()) -> None:
        """The events of a claim are sent, except `unsent`: those may be claimed again."""
        self._write(Settled(claim_id, list(unsent)))

    def _write(self, note: Claim | Settled) -> None:
        with self._connection.writer() as writer:
            writer.send(Message(self._topic, encode(note), None, 0))
            [(_, _, offset)] = writer.flush()
        self._read((self._read_to, offset + 1))

    def _read(self, span: tuple[int, int]) -> None:
        for batch in topics.read_between(self._connection, {(self._topic, 0): span}):
            for record in batch:
                self._note(record)
        self._read_to = span[1]

    def _note(self, record: Received) -> None:
        try:
            note = decode(record.value, Claim | Settled)  # type: ignore[arg-type]
        except UNDECODABLE as error:
            raise RestoreError(
                f"{record.topic}, offset {record.offset}, was not written by this version of Unmask ({error}): what "
                "was sent again is not known; delete and create this topic if refused events may be sent a second time"
            ) from error
        if isinstance(note, Claim):
            for place in note.places:
                self._holder.setdefault(place, note.id)
            self._open[note.id] = note, record.timestamp_ms
        else:
            self._open.pop(note.id, None)
            for place in note.unsent:
                if self._holder.get(place) == note.id:
                    del self._holder[place]

    def _unsent(self, claim: Claim) -> list[Place]:
        """The events of a claim that did not get into the events topic after it."""
        held = [place for place in claim.places if self._holder.get(place) == claim.id]
        partitions = {place.partition for place in held}
        spans: Mapping[tuple[str, int], tuple[int, int]] = {
            (topic, p): (max(first, claim.ends.get(p, 0)), end)
            for (topic, p), (first, end) in topics.bounds(self._connection, [self._events]).items()
            if p in partitions
        }
        sent = Counter(
            (record.partition, hashlib.sha256(record.value or b"").hexdigest()[:16])
            for batch in topics.read_between(self._connection, spans)
            for record in batch
        )
        unsent = []
        for place in held:
            same = place.partition, place.digest
            if not sent[same]:
                unsent.append(place)
            sent[same] -= 1
        return unsent
