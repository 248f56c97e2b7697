"""Send refused events again after the cause was mended: each at most once, and only if it fits the contract now."""

import hashlib
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from pipelines.contracts.contract import EventContract, Refusal
from pipelines.contracts.stream import Stream
from pipelines.errors import UnmaskError
from pipelines.faults import Fault, no_fault
from pipelines.kafka import topics
from pipelines.kafka.connection import Connection, Shared
from pipelines.kafka.letters import Choice, Letter, Place, Raw, letters
from pipelines.kafka.port import Message
from pipelines.operate.ledger import Ledger

HEADER = "unmask_replay_of"  # of an event that was sent again: the place of the refused one, topic/partition/offset
NEVER = {
    "duplicate": "the event was scored at its first occurrence",
    "unpublishable": "the event is in the features of its entities already; only its score is missing",
    "unreadable_record": "no client can read the event",
}
_CHUNK = 500  # events of one claim
_GAP = 1_000  # offsets that are read rather than skipped


@dataclass
class OfRule:
    """The dead letters of one rule. `n_fit` fit the contract now; the others were not sent, and are counted by reason.

    `again` counts those that would be refused again, by the rule that they break now. `n_gone`: neither Kafka nor the
    letter has the whole event. `n_taken`: another process sends it.
    """

    n_letters: int = 0
    n_before: int = 0
    n_fit: int = 0
    n_sent: int = 0
    n_gone: int = 0
    n_taken: int = 0
    again: Counter[str] = field(default_factory=Counter)


@dataclass
class Resent:
    """What was sent again, or would be, by the rule of the refusal; `left_out` counts letters of rules in `NEVER`."""

    rules: dict[str, OfRule] = field(default_factory=lambda: defaultdict(OfRule))
    left_out: Counter[str] = field(default_factory=Counter)

    @property
    def is_whole(self) -> bool:
        """Whether each of the events fits now, or was sent before."""
        return all(one.n_before + one.n_fit == one.n_letters for one in self.rules.values())

    @property
    def n_fit(self) -> int:
        """Number of events that fit the contract now and were not sent before."""
        return sum(one.n_fit for one in self.rules.values())

    @property
    def n_sent(self) -> int:
        """Number of events sent."""
        return sum(one.n_sent for one in self.rules.values())


def resend(
    connection: Connection,
    stream: Stream,
    choice: Choice = Choice(),
    *,
    send: bool,
    progress: Callable[[int, int], None] | None = None,
    fault: Fault = no_fault,
) -> Resent:
    """Send refused events again as new events of the same partition and key, with a header that names their old place.

    The scorer treats them like any new event: each is scored, refused or a duplicate.

    Args:
        send: False only counts.
        progress: called with the number of dead letters passed and the total.

    Raises:
        UnmaskError: the topics are those of a replay, which has its own clock.
        ResendingError: another process sends refused events again.
        BrokerError: Kafka does not answer; what was sent is found out by the next call.
    """
    if not topics.stamps_appends(connection, stream.topic("events")):
        raise UnmaskError(
            f"{stream.topic('events')} has the clock of its producer (a replay of past events), and a refused event "
            "sent again has no time in it; this works on live topics, see `unmask topics live`"
        )
    resent, seen = Resent(), set[Place]()
    with Shared.of(connection) as shared:
        ledger = Ledger(shared, stream)
        if send:
            ledger.settle_open()
        for batch in letters(connection, stream, choice, progress=progress):
            due = list(_due(batch, ledger, resent, seen))
            for begin in range(0, len(due), _CHUNK):
                fitting = _fitting(shared, stream, due[begin : begin + _CHUNK], resent)
                if send and fitting:
                    _send(shared, ledger, fitting, resent, fault)
    return resent


def _due(batch: Iterable[Letter], ledger: Ledger, resent: Resent, seen: set[Place]) -> Iterator[Letter]:
    """Letters about events that were not sent again yet."""
    for letter in batch:
        rule = letter.refused.rule
        if rule in NEVER:
            resent.left_out[rule] += 1
            continue
        count = resent.rules[rule]
        count.n_letters += 1
        if letter.place in ledger or letter.place in seen:
            count.n_before += 1
        else:
            seen.add(letter.place)
            yield letter


def _fitting(connection: Connection, stream: Stream, due: Sequence[Letter], resent: Resent) -> list[tuple[Letter, Raw]]:
    """The events that fit the contract now, with their letters."""
    whole = {letter.place: raw for letter in due if (raw := letter.whole_event()) is not None}
    absent = [letter.place for letter in due if letter.place not in whole]
    if absent:
        whole |= _originals(connection, stream.topic("events"), absent)
    contract, now_ms, fitting = EventContract(stream), round(time.time() * 1000), []
    for letter in due:
        count, raw = resent.rules[letter.refused.rule], whole.get(letter.place)
        if raw is None:
            count.n_gone += 1
        elif isinstance(refusal := contract.decode(raw.value, raw.key, now_ms), Refusal):
            count.again[refusal.rule] += 1
        else:
            count.n_fit += 1
            fitting.append((letter, raw))
    return fitting


def _originals(connection: Connection, topic: str, places: Sequence[Place]) -> dict[Place, Raw]:
    """Events that are still in the events topic, with the value that was refused."""
    bounds = topics.bounds(connection, [topic])
    wanted = {(place.partition, place.offset): place for place in sorted(places)}
    runs: list[list[Place]] = []
    for place in wanted.values():
        near = runs and runs[-1][0].partition == place.partition and place.offset - runs[-1][-1].offset < _GAP
        if near:
            runs[-1].append(place)
        else:
            runs.append([place])
    found = dict[Place, Raw]()
    for run in runs:
        position = topic, run[0].partition
        first, end = bounds.get(position, (0, 0))
        span = max(first, run[0].offset), min(end, run[-1].offset + 1)
        for batch in topics.read_between(connection, {position: span}):
            for record in batch:
                same = wanted.get((record.partition, record.offset))
                if same and hashlib.sha256(record.value or b"").hexdigest().startswith(same.digest):
                    found[same] = Raw(record.key, record.value or b"")
    return found


def _send(
    connection: Connection, ledger: Ledger, fitting: Sequence[tuple[Letter, Raw]], resent: Resent, fault: Fault
) -> None:
    claim, won = ledger.claim([letter.place for letter, _ in fitting])
    fault("after_claim")
    with connection.writer() as writer:
        for letter, (key, value) in fitting:
            if letter.place in won:
                source = letter.refused.source
                header = f"{source.topic}/{source.partition}/{source.offset}".encode()
                writer.send(Message(source.topic, value, key, source.partition, None, [(HEADER, header)]))
        writer.flush()
    fault("after_send")
    ledger.settle(claim)
    for letter, _ in fitting:
        count = resent.rules[letter.refused.rule]
        if letter.place in won:
            count.n_sent += 1
        else:
            count.n_taken += 1
