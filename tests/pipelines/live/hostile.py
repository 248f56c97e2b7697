"""A battery of hostile records on events and labels, each between good neighbours, and what must become of each."""

import itertools
import json
import struct
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl
from kafka import KafkaProducer

from flows.local.kafka_server import Broker, start_broker
from pipelines.kafka import topics
from pipelines.kafka.port import Adapter, Message
from pipelines.lake.audit import reconcile
from pipelines.lake.ingest import ingest
from pipelines.lake.tables import Lake
from tests.patience import HANG_S
from tests.pipelines.kafka import batches
from tests.pipelines.kafka.adapters import ADAPTERS, CLIENT
from tests.pipelines.kafka.batches import GZIP, LZ4, NONE, SNAPPY, ZSTD, Raw
from tests.pipelines.live.rig import N_PARTITIONS, Rig, Running

SCORED, DUPLICATE, UNREADABLE = "scored", "duplicate", "unreadable_record"
TAKEN = "taken"  # of a label
HIDDEN = "hidden"  # nobody may see it
CARD, KEY = "c0", b"c0"
BOMB_BYTES = 160 << 20
_ids = itertools.count()


class Sent(NamedTuple):
    """What a kind sent: a batch for partition 0, and the outcome of each of its records."""

    raw: bytes
    outcomes: Sequence[str]


class Kind(NamedTuple):
    """A kind of hostile record. `quick` ones run in `make test`."""

    name: str
    make: Callable[[], Sent]
    topic: str = "events"
    quick: bool = False
    aborted: bool = False


def event(**fields: object) -> dict[str, object]:
    """A good event with an id of its own; fields replaced, those that are `...` left out."""
    head: dict[str, object] = {
        "id": f"h{next(_ids)}", "at": int(time.time() * 1000), "card": CARD, "shop": 1, "amount": 5.0, "country": "de",
    }  # fmt: skip
    return {name: value for name, value in (head | fields).items() if value is not ...}


def label(**fields: object) -> dict[str, object]:
    """A good label of an event that nobody has seen."""
    head: dict[str, object] = {
        "id": f"l{next(_ids)}", "at": int(time.time() * 1000), "card": CARD, "shop": 1,
        "label": 1, "labelled_at": int(time.time() * 1000), "source": "battery",
    }  # fmt: skip
    return {name: value for name, value in (head | fields).items() if value is not ...}


def one(outcome: str, value: bytes | None, key: bytes | None = KEY, **rest: Any) -> Sent:
    headers = rest.pop("headers", ())
    return Sent(batches.batch([Raw(value, key, headers)], **rest), [outcome])


def dumped(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass")


def raw_json(outcome: str, text: str | bytes) -> Callable[[], Sent]:
    """A value as it stands; @ is a new id, $ now."""

    def make() -> Sent:
        value = text if isinstance(text, bytes) else text.encode()
        value = value.replace(b"@", f"h{next(_ids)}".encode()).replace(b"$", str(int(time.time() * 1000)).encode())
        return one(outcome, value)

    return make


def fields(outcome: str, **changed: Any) -> Callable[[], Sent]:
    """A good event but for some fields; a callable gives the value when it is sent."""
    return lambda: one(outcome, dumped(event(**{n: v() if callable(v) else v for n, v in changed.items()})))


def keyed(outcome: str, key: bytes | None, **changed: Any) -> Callable[[], Sent]:
    return lambda: one(outcome, dumped(event(**changed)), key)


def headed(outcome: str, headers: Sequence[tuple[bytes, bytes | None]], codec: int = NONE) -> Callable[[], Sent]:
    return lambda: one(outcome, dumped(event()), headers=headers, codec=codec)


def between(codec: int) -> Callable[[], Sent]:
    """A good event, a bad header name, a good event, in one batch."""

    def make() -> Sent:
        rows = [Raw(dumped(event()), KEY, [(b"\xff\xfe", b"")] if n == 1 else ()) for n in range(3)]
        return Sent(batches.batch(rows, codec=codec), [SCORED, UNREADABLE, SCORED])

    return make


def compressed(codec: int) -> Callable[[], Sent]:
    return lambda: Sent(batches.batch([Raw(dumped(event()), KEY)] * 1, codec=codec), [SCORED])


def bomb(codec: int) -> Callable[[], Sent]:
    def make() -> Sent:
        payload = batches._COMPRESS[codec](batches.record_bytes(0, Raw(bytes(BOMB_BYTES), KEY)))
        return Sent(batches.batch([Raw(b"")], codec=codec, payload=payload), [UNREADABLE])

    return make


def many(n: int, outcome: str, make: Callable[[int], bytes | None], codec: int = NONE) -> Callable[[], Sent]:
    return lambda: Sent(batches.batch([Raw(make(i), KEY) for i in range(n)], codec=codec), [outcome] * n)


def twice() -> Sent:
    value = dumped(event())
    return Sent(batches.batch([Raw(value, KEY), Raw(value, KEY)]), [SCORED, DUPLICATE])


def labelled(outcome: str, key: bytes | None = KEY, **changed: object) -> Callable[[], Sent]:
    return lambda: one(outcome, dumped(label(**changed)), key)


def _now(ahead_ms: int = 0) -> Callable[[], int]:
    return lambda: int(time.time() * 1000) + ahead_ms


HEAD = '"id":"@","at":$,"card":"c0"'
YEAR_MS = 365 * 86_400_000

EVENT_KINDS = [
    # what is no JSON object
    Kind("empty value", raw_json("bad_json", b""), quick=True),
    Kind("blanks", raw_json("bad_json", b"  \n\t "), quick=True),
    Kind("open brace", raw_json("bad_json", b"{"), quick=True),
    Kind("cut off in the middle", raw_json("bad_json", "{" + HEAD), quick=True),
    Kind("an array", raw_json("wrong_type", b"[]"), quick=True),
    Kind("null", raw_json("wrong_type", b"null")),
    Kind("a number", raw_json("wrong_type", b"17"), quick=True),
    Kind("a string", raw_json("wrong_type", b'"text"'), quick=True),
    Kind("an empty object", raw_json("missing_field", b"{}"), quick=True),
    Kind("trailing comma", raw_json("bad_json", "{" + HEAD + ",}"), quick=True),
    Kind("single quotes", raw_json("bad_json", b"{'id':'x'}"), quick=True),
    Kind("a comment", raw_json("bad_json", "{/* x */" + HEAD + "}")),
    Kind("two objects", raw_json("bad_json", "{" + HEAD + "}{" + HEAD + "}"), quick=True),
    Kind("unquoted names", raw_json("bad_json", b"{id:1}"), quick=True),
    Kind("XML", raw_json("bad_json", b"<event id='1'/>")),
    Kind("protobuf-like bytes", raw_json("bad_json", bytes(range(256))), quick=True),
    Kind("only NUL bytes", raw_json("bad_json", bytes(64)), quick=True),
    # encodings
    Kind("a byte order mark", raw_json("bad_json", b"\xef\xbb\xbf{}"), quick=True),
    Kind("UTF-16", raw_json("bad_json", "{}".encode("utf-16"))),
    Kind("Latin-1", raw_json("bad_json", ("{" + HEAD + ',"country":"').encode() + b'\xfc"}'), quick=True),
    Kind("overlong UTF-8", raw_json("bad_json", ("{" + HEAD + ',"country":"').encode() + b'\xc0\xaf"}')),
    Kind("half a surrogate, escaped", raw_json("bad_json", "{" + HEAD + ',"country":"\\ud800"}'), quick=True),
    Kind("half a surrogate as bytes", raw_json("bad_json", ("{" + HEAD + ',"country":"').encode() + b'\xed\xa0\x80"}')),
    Kind("a raw control character", raw_json("bad_json", "{" + HEAD + ',"country":"\x01"}')),
    # numbers
    Kind("NaN", raw_json("not_finite", "{" + HEAD + ',"amount":NaN}'), quick=True),
    Kind("Infinity", raw_json("not_finite", "{" + HEAD + ',"amount":Infinity}')),
    Kind("-inf", raw_json("not_finite", "{" + HEAD + ',"amount":-inf}')),
    Kind("1e400", raw_json("out_of_range", "{" + HEAD + ',"amount":1e400}'), quick=True),
    Kind("1e308", fields("out_of_range", amount=1e308)),
    Kind("5e-324", fields(SCORED, amount=5e-324)),
    Kind("minus zero", fields(SCORED, amount=-0.0)),
    Kind("negative where none may be", fields("out_of_range", amount=-5)),
    Kind("2^70", fields("out_of_range", pieces=2**70)),
    Kind("a fraction where a whole number is due", fields("wrong_type", pieces=1.5)),
    Kind("400 digits", raw_json("out_of_range", "{" + HEAD + ',"amount":' + "9" * 400 + "}")),
    Kind("a number in quotes", fields("wrong_type", amount="5.0"), quick=True),
    Kind("true for a number", fields("wrong_type", amount=True)),
    Kind("leading zeros", raw_json("bad_json", "{" + HEAD + ',"amount":007}')),
    # types and sizes
    Kind("an array for a text", fields("wrong_type", id=["x"])),
    Kind("an object for a number", fields("wrong_type", amount={"x": 1})),
    Kind("a number for the id", fields("wrong_type", id=17)),
    Kind("no id", fields("missing_field", id=...)),
    Kind("null id", fields("missing_field", id=None)),
    Kind("empty id", fields("missing_field", id="")),
    Kind("an id too long", fields("too_long", id="x" * 41)),
    Kind("a category too long", fields("too_long", country="x" * 21)),
    Kind("a value over max_message_bytes", fields("too_big", note="x" * 2_000), quick=True),
    Kind("a value of 900 kB", fields("too_big", note="x" * 900_000)),
    Kind("100,000 open brackets", raw_json("too_big", b"[" * 100_000)),
    Kind("900 nested arrays in an unknown field", raw_json(SCORED, "{" + HEAD + ',"x":' + "[" * 900 + "]" * 900 + "}")),
    Kind("150 unknown fields", fields(SCORED, **{f"u{n}": n for n in range(150)})),
    Kind("every optional field missing", fields(SCORED, shop=..., amount=..., country=...), quick=True),
    Kind("every optional field null", fields(SCORED, shop=None, amount=None, country=None)),
    Kind("the same name twice", raw_json(SCORED, "{" + HEAD + ',"amount":1,"amount":2}')),
    # text that means something elsewhere
    Kind("right-to-left override", fields(SCORED, country="\u202eed")),
    Kind("terminal escapes", fields(SCORED, country="\x1b[2J\x1b]0;x\x07"), quick=True),
    Kind("a script tag", fields(SCORED, country="<script>x()</script>"[:20])),
    Kind("SQL", fields(SCORED, country="'; DROP TABLE x;--")),
    Kind("rich markup", fields(SCORED, country="[bold red]x[/]")),
    Kind("NUL in a text", fields(SCORED, country="a\x00b")),
    Kind("emoji and combining marks", fields(SCORED, country="👩‍👩‍👧e\u0301")),
    # times
    Kind("no time", fields("missing_field", at=...)),
    Kind("time before 1970", fields("out_of_range", at=-1)),
    Kind("time at 1970", fields(SCORED, at=0), quick=True),
    Kind("time in the year 2300", fields("out_of_range", at=10_413_792_000_000)),
    Kind("time 2^63", fields("out_of_range", at=2**63)),
    Kind("an hour ahead", fields("future_timestamp", at=_now(3_600_000)), quick=True),
    Kind("ten years ago", fields(SCORED, at=_now(-10 * YEAR_MS))),
    Kind("time without a zone", fields("wrong_type", at="2026-01-01T00:00:00")),
    Kind("the thirteenth month", fields("wrong_type", at="2026-13-01T00:00:00Z")),
    Kind("time as a fraction", fields("wrong_type", at=1.5)),
    Kind("true for a time", fields("wrong_type", at=True)),
    # keys and tombstones
    Kind("a tombstone", lambda: one("bad_json", None), quick=True),
    Kind("neither key nor value", lambda: one("bad_json", None, None)),
    Kind("no key", keyed("wrong_key", None), quick=True),
    Kind("another key", keyed("wrong_key", b"c1")),
    Kind("the key with a line end", keyed("wrong_key", b"c0\n")),
    Kind("a key that is not UTF-8", keyed("wrong_key", b"\xff\xfe")),
    Kind("an empty key", keyed("wrong_key", b"")),
    Kind("a key of 100 kB", keyed("wrong_key", b"k" * 100_000), quick=True),
    Kind("a key of 1 MB", keyed("wrong_key", b"k" * 1_048_200), quick=True),
    Kind("no card", keyed("missing_field", b"", card=...)),
    Kind("an empty card", keyed("missing_field", b"", card="")),
    # headers
    Kind("a header name that is not UTF-8", headed(UNREADABLE, [(b"\xff\xfe", b"x")]), quick=True),
    Kind("an empty header name", headed(SCORED, [(b"", b"x")])),
    Kind("a header without a value", headed(SCORED, [(b"h", None)])),
    Kind("a thousand headers", headed(SCORED, [(b"h", b"x")] * 1_000), quick=True),
    Kind("a header of 500 kB", headed(SCORED, [(b"h", b"x" * 500_000)])),
    *(Kind(f"a bad header name between good records, {batches.CODEC_NAMES[c]}", between(c), quick=c in (NONE, ZSTD))
      for c in (NONE, GZIP, SNAPPY, LZ4, ZSTD)),
    # codecs
    *(Kind(f"compressed with {batches.CODEC_NAMES[c]}", compressed(c), quick=c != GZIP)
      for c in (GZIP, SNAPPY, LZ4, ZSTD)),
    *(Kind(f"a bomb in {batches.CODEC_NAMES[c]}", bomb(c), quick=c == ZSTD) for c in (GZIP, LZ4, ZSTD)),
    Kind("a batch of 2,000 broken records", many(2_000, "bad_json", lambda n: b"?", ZSTD), quick=True),
    Kind("a batch of 500 good records", many(500, SCORED, lambda n: dumped(event()))),
    # stamps, duplicates, transactions
    Kind("a sender's stamp in the far future", lambda: one(SCORED, dumped(event()), stamp_ms=2**60)),
    Kind("a sender's stamp of -1", lambda: one(SCORED, dumped(event()), stamp_ms=-1)),
    Kind("the same event twice in a batch", twice, quick=True),
    Kind("an aborted transaction", lambda: Sent(dumped(event()), [HIDDEN]), aborted=True, quick=True),
]  # fmt: skip

LABEL_KINDS = [
    Kind("of an unknown event", labelled(TAKEN)),
    Kind("labelled far in the future", labelled(TAKEN, labelled_at=7_000_000_000_000), quick=True),
    Kind("labelled at 1970", labelled(TAKEN, labelled_at=0)),
    Kind("labelled before 1970", labelled("out_of_range", labelled_at=-1)),
    Kind("labelled in the year 2300", labelled("out_of_range", labelled_at=10_413_792_000_000)),
    Kind("2", labelled("out_of_range", label=2), quick=True),
    Kind("-1", labelled("out_of_range", label=-1)),
    Kind("null", labelled("missing_field", label=None), quick=True),
    Kind("missing", labelled("missing_field", label=...)),
    Kind("a text", labelled("wrong_type", label="fraud"), quick=True),
    Kind("true", labelled("wrong_type", label=True)),
    Kind("a fraction", labelled("wrong_type", label=0.5)),
    Kind("no source", labelled("missing_field", source=...)),
    Kind("a source of 1,500 characters", labelled("too_long", source="s" * 1_500)),
    Kind("no key", labelled("wrong_key", None)),
    Kind("the key of another card", labelled("wrong_key", b"c1")),
    Kind("a tombstone", lambda: one("bad_json", None)),
    Kind("no JSON", lambda: one("bad_json", b"fraud!")),
    Kind("NaN", lambda: one("not_finite", b'{"label":NaN}')),
    Kind("a header name not in UTF-8", lambda: one(UNREADABLE, dumped(label()), headers=[(b"\xff", b"")]), quick=True),
    Kind("a bomb in zstd", bomb(ZSTD)),
    Kind("taken back before it was given", labelled(TAKEN, label=0)),
]  # fmt: skip

KINDS = EVENT_KINDS + [k._replace(name=f"label: {k.name}", topic="labels") for k in LABEL_KINDS]

# Bytes flipped on the broker's disk, in a batch of three; with a `True`, its checksum is made to fit again.
DAMAGES: Sequence[tuple[str, int, int, bool]] = (
    ("payload", NONE, batches.RECORDS_AT + 9, False),
    ("checksum", NONE, batches.CRC_AT, False),
    ("attributes", NONE, batches.ATTRIBUTES_AT + 1, False),
    ("time stamp", NONE, 30, False),
    ("producer id", NONE, 45, False),
    ("number of records", NONE, 60, False),
    ("format", NONE, 16, False),
    *((f"{batches.CODEC_NAMES[c]} payload", c, -9, False) for c in (GZIP, SNAPPY, LZ4, ZSTD)),
    *((f"{batches.CODEC_NAMES[c]} payload, checksum made to fit", c, batches.RECORDS_AT, True)
      for c in (GZIP, SNAPPY, LZ4, ZSTD)),
    ("codec that nobody knows", NONE, batches.ATTRIBUTES_AT + 1, True),
)  # fmt: skip


def flipped(raw: bytes, at: int, *, fit: bool) -> bytes:
    """The batch with three bits of one byte flipped."""
    at %= len(raw)
    bad = raw[:at] + bytes([raw[at] ^ 0x07]) + raw[at + 1 :]
    return batches.with_crc(bad) if fit else bad


def damage(file: Path, places: Mapping[int, tuple[int, bool]]) -> None:
    """Flip a byte in the batches of a log segment that begin at these offsets."""
    data, at, left = bytearray(file.read_bytes()), 0, dict(places)
    while at + 12 <= len(data) and left:
        base, length = struct.unpack_from(">qi", data, at)
        if base in left:
            place, fit = left.pop(base)
            data[at : at + 12 + length] = flipped(bytes(data[at : at + 12 + length]), place, fit=fit)
        at += 12 + length
    assert not left, f"{file} has no batches at {sorted(left)}"
    file.write_bytes(data)


@dataclass
class Place:
    """Where a kind's records lie, and what must become of each."""

    topic: str
    offset: int
    outcomes: Sequence[str]


@dataclass
class Outcome:
    """What became of a kind; `wrong` is empty where all is as it must be."""

    kind: Kind
    seconds: float = 0.0
    places: list[Place] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)


class Battery:
    """One stream, one scorer, all kinds; a scorer that dies is started again, and the kind that killed it is told."""

    def __init__(
        self, bootstrap: str, folder: Path, *, deadline_s: float = HANG_S, adapter: Adapter = ADAPTERS[CLIENT]
    ) -> None:
        self.bootstrap, self.folder, self._deadline_s = bootstrap, folder, deadline_s
        self._adapter = adapter
        self.rig = Rig(bootstrap, folder, adapter=adapter)
        self._run = Running(self.rig.scorer())
        self.outcomes: list[Outcome] = []
        self._writer = self.rig.connection.writer()
        self._good = itertools.count()
        self._n_broken_labels = 0  # as counted by scorers that have ended

    def close(self) -> None:
        self._writer.close()
        self._run.stop()

    def _stop(self) -> None:
        self._run.stop()
        self._n_broken_labels += self._run.scorer.counters.n_broken_labels

    def run(self, kind: Kind) -> Outcome:
        """Send a kind between good neighbours, and wait until all of it is out."""
        outcome = Outcome(kind)
        self.outcomes.append(outcome)
        begun = time.monotonic()
        topic = self.rig.stream.topic(kind.topic)
        outcome.places.append(self.neighbour())
        try:
            sent = kind.make()
            if kind.aborted:
                self._abort(topic, sent.raw)
            else:
                outcome.places.append(
                    Place(kind.topic, batches.send(self.bootstrap, topic, 0, sent.raw), sent.outcomes)
                )
        except AssertionError as error:
            outcome.wrong.append(str(error)[:200])
        if kind.topic == "labels":
            outcome.places.append(self.neighbour("labels"))
        last = self.neighbour()
        outcome.places.append(last)
        self._wait(last.offset, outcome)
        outcome.seconds = time.monotonic() - begun
        return outcome

    def neighbour(self, kind: str = "events") -> Place:
        """A good event, or a good label, in partition 0."""
        value = event(id=f"g{next(self._good)}") if kind == "events" else label()
        self._writer.send(Message(self.rig.stream.topic(kind), dumped(value), KEY, 0))
        [(_, _, offset)] = self._writer.flush()
        return Place(kind, offset, [SCORED if kind == "events" else TAKEN])

    def _abort(self, topic: str, value: bytes) -> None:
        producer = KafkaProducer(bootstrap_servers=self.bootstrap, transactional_id=f"aborted-{topic}")
        producer.init_transactions()
        producer.begin_transaction()
        producer.send(topic, value, key=KEY, partition=0).get(10)
        producer.abort_transaction()
        producer.close()

    def _wait(self, offset: int, outcome: Outcome) -> None:
        until = time.monotonic() + self._deadline_s
        while True:
            if self._run.error is not None:
                outcome.wrong.append(f"the scorer ended: {type(self._run.error).__name__}: {self._run.error}"[:300])
                self.restart()
                return
            progress = self._run.scorer.lanes[0].progress
            if progress is not None and progress.next_offset > offset:
                return
            if time.monotonic() > until:
                outcome.wrong.append(f"not out after {self._deadline_s:g} s")
                self._new_stream()
                return
            time.sleep(0.01)

    def restart(self) -> None:
        self._stop()
        self._run = Running(self.rig.scorer())

    def _new_stream(self) -> None:
        """What is stuck stays stuck: the other kinds get a stream of their own, those before are not checked."""
        self._run.stop()
        self._n_broken_labels = 0
        for outcome in self.outcomes:
            outcome.places = []
        self.rig = Rig(self.bootstrap, self.folder / str(len(self.outcomes)), adapter=self._adapter)
        self._run = Running(self.rig.scorer())

    def run_damaged(self, own: Broker) -> Broker:
        """Batches damaged on the broker's disk, which is stopped for it; returns the broker, started again."""
        self._stop()
        patches: dict[str, list[tuple[int, int, bool]]] = {"events": [], "labels": []}
        for topic, (name, codec, at, fit) in itertools.product(patches, DAMAGES):
            outcome = Outcome(Kind(f"damaged {topic}: {name}", lambda: Sent(b"", ()), topic))
            self.outcomes.append(outcome)
            outcome.places.append(self.neighbour(topic))
            rows = [Raw(dumped(event() if topic == "events" else label()), KEY) for _ in range(3)]
            offset = batches.send(self.bootstrap, self.rig.stream.topic(topic), 0, batches.batch(rows, codec=codec))
            patches[topic].append((offset, at, fit))
            outcome.places += [Place(topic, offset, [UNREADABLE] * 3), self.neighbour(topic)]
        last = self.neighbour()
        outcome.places.append(last)
        own.stop()
        for topic, places in patches.items():
            file = own.folder / "data" / f"{self.rig.stream.topic(topic)}-0" / f"{0:020d}.log"
            damage(file, {offset: (at, fit) for offset, at, fit in places})
        again = start_broker(own.folder, log=lambda line: None)
        topics.wait_until_up(self.rig.connection, deadline_s=HANG_S)
        self._run = Running(self.rig.scorer())
        self._wait(last.offset, outcome)
        return again

    def check(self, lake_folder: Path) -> list[str]:
        """Compare all that came out with what must; returns what is wrong with the stream as a whole."""
        expected = {
            (place.topic, place.offset + n): (what, outcome)
            for outcome in self.outcomes
            for place in outcome.places
            for n, what in enumerate(place.outcomes)
        }
        self._compare("the scorer", "events", expected, dict(self._published()))
        wrong = self._check_books(sum(topic == "events" for topic, _ in expected))
        n_broken = sum(topic == "labels" and what != TAKEN for (topic, _), (what, _) in expected.items())
        until = time.monotonic() + HANG_S
        while (counted := self._n_broken_labels + self._run.scorer.counters.n_broken_labels) != n_broken:
            if time.monotonic() > until:
                wrong.append(f"{n_broken} labels are broken, the scorer counted {counted}")
                break
            time.sleep(0.1)  # labels act a while after they came
        lake = Lake(lake_folder, self.rig.stream)
        ingest(self.rig.connection, self.rig.stream, lake)
        for kind in ("events", "labels"):
            found = dict(self._in_lake(lake, kind))
            self._compare("the ingest", kind, expected, found)
        return wrong

    def _check_books(self, n_expected: int) -> list[str]:
        books = reconcile(self.rig.connection, self.rig.stream)
        wrong = [] if books.holds else [f"the books do not balance: {books}"]
        if books.n_events != n_expected or books.pending > N_PARTITIONS:
            wrong.append(f"{n_expected} events were sent, the books have {books.n_events}, pending {books.pending}")
        return wrong

    def _compare(
        self, who: str, topic: str, expected: dict[tuple[str, int], tuple[str, Outcome]], found: dict[int, str]
    ) -> None:
        for (at, offset), (what, outcome) in expected.items():
            if at == topic and not self._agrees(who, what, seen := found.get(offset, "nothing")):
                outcome.wrong.append(f"{who} has {seen} at {topic} offset {offset}, not {what}")

    @staticmethod
    def _agrees(who: str, what: str, seen: str) -> bool:
        if who == "the ingest" and what in (SCORED, DUPLICATE, TAKEN):
            return seen == "kept"
        return seen == what

    def _published(self) -> Iterator[tuple[int, str]]:
        for kind in ("scores", "refused"):
            spans = topics.bounds(self.rig.connection, [self.rig.stream.topic(kind)])
            for records in topics.read_between(self.rig.connection, spans):
                for record in records:
                    message = json.loads(record.value or b"")
                    if message["source"]["partition"] == 0:
                        yield message["source"]["offset"], SCORED if kind == "scores" else message["rule"]

    def _in_lake(self, lake: Lake, kind: str) -> Iterator[tuple[int, str]]:
        kept = lake.read(kind).filter(pl.col("partition") == 0)["offset"].to_list()
        yield from ((offset, "kept") for offset in kept)
        refused = lake.read("refused").filter(
            (pl.col("topic") == self.rig.stream.topic(kind)) & (pl.col("partition") == 0)
        )
        yield from refused.select("offset", "rule").iter_rows()
