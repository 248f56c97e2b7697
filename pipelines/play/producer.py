"""The producer of a replay: sends past events and their labels to Kafka, stamped with their own clock."""

import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import msgspec
import numpy as np
import polars as pl
from numpy.typing import NDArray

from pipelines.contracts.contract import text_of
from pipelines.contracts.stream import DAY_MS, TOPICS, Stream
from pipelines.kafka import topics
from pipelines.kafka.connection import Connection
from pipelines.kafka.port import Message, Writer
from pipelines.kafka.topics import KEEP_FOR_EVER
from pipelines.live.marks import mark_bytes
from pipelines.order import KIND_NAMES, Source, sources

BULK_RECORDS = 20_000
LIVE_FLUSH_S = 0.025
_LINGER_MS = 1_000  # `play` flushes; a sender that sends every few records is half as fast
_LATER_MS = (1_000, 600_000)  # a duplicate comes this much later, on the stream's clock
_LARGEST_BROKEN_BYTES = 900_000  # the default limit of a broker, less some room for headers
_encode = msgspec.json.Encoder().encode
_GOOD, _REPEATED, _BROKEN, _REPORT = range(4)


@dataclass(frozen=True)
class Played:
    """Counts of a replay. `n_events` counts all records of the events topic: good, broken and repeated ones."""

    n_events: int
    n_labels: int
    n_duplicates: int
    n_broken: Mapping[str, int] = field(default_factory=dict)
    wall_s: float = 0.0


def create_stream_topics(
    connection: Connection, stream: Stream, *, n_partitions: int = 4, append_time: bool, replication: int = 1
) -> list[str]:
    """Create the missing topics of a stream, with unlimited retention; returns their names.

    Args:
        append_time: the broker stamps events and labels on arrival (live); otherwise their producer does (a replay).
        replication: copies of each partition.
    """
    there = topics.topic_names(connection)
    stamped = {"message.timestamp.type": "LogAppendTime"} if append_time else {
        "message.timestamp.type": "CreateTime",
        "message.timestamp.after.max.ms": str(2**63 - 1),  # a replay's clock may be ahead of the broker's
    }  # fmt: skip
    inputs = [stream.topic(kind) for kind in KIND_NAMES]
    single, orders = [stream.topic(kind) for kind in ("clock", "resent")], stream.topic("control")
    apart = {*inputs, *single, orders}
    others = [stream.topic(kind) for kind in TOPICS if stream.topic(kind) not in apart]
    history = KEEP_FOR_EVER | {"cleanup.policy": "delete", "message.timestamp.type": "LogAppendTime"}
    for wanted, config in (
        (dict.fromkeys(inputs, n_partitions), KEEP_FOR_EVER | stamped),
        (dict.fromkeys(others, n_partitions), KEEP_FOR_EVER),
        (dict.fromkeys(single, 1), KEEP_FOR_EVER),
        ({orders: 1}, history),
    ):
        topics.create_topics(connection, wanted, config=config, replication=replication)
    return [name for name in (*inputs, *others, *single, orders) if name not in there]


class _Schedule(NamedTuple):
    """The records of one `play` in the order of their timestamps. All arrays have n rows."""

    stamp_ms: NDArray[np.int64]
    kind: NDArray[np.int8]
    row: NDArray[np.int64]  # of the frame


class Replayer:
    """Sends past events. After each flush it writes the time reached to the clock topic of the stream.

    Args:
        n_partitions: partitions of the events and labels topics.

    Example:
        replayer = Replayer(connection, stream, n_partitions=4)
        replayer.play(frame, label_delay_ms=3 * DAY_MS, until_ms=live_from)             # history, as fast as it goes
        replayer.play(frame, label_delay_ms=3 * DAY_MS, from_ms=live_from, rate=2_000)  # the live part
        replayer.finish()
    """

    def __init__(self, connection: Connection, stream: Stream, *, n_partitions: int) -> None:
        self._connection, self._stream, self._n_partitions = connection, stream, n_partitions
        self._partitions: dict[bytes, int] = {}
        kinds = {stream.topic(kind): index for index, kind in enumerate(KIND_NAMES)}
        self._ends = dict.fromkeys(sources(n_partitions, labels=stream.labels is not None), 0)
        self._source_of = {(topic, p): Source(kind, p) for topic, kind in kinds.items() for p in range(n_partitions)}
        wanted = {stream.topic(KIND_NAMES[s.kind]) for s in self._ends}
        for position, (_, end) in topics.bounds(connection, wanted).items():
            self._ends[self._source_of[position]] = end

    def play(
        self,
        frame: pl.DataFrame,
        *,
        label_delay_ms: int = 0,
        from_ms: int | None = None,
        until_ms: int | None = None,
        rate: float | None = None,
        broken_share: float = 0.0,
        duplicate_share: float = 0.0,
        seed: int = 0,
        on_sent: Callable[[str, float], None] | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> Played:
        """Send the records with from_ms <= timestamp < until_ms: events at their time, their labels a delay later.

        The stream's `reports` says which labels: those of frauds, or those of all events whose truth is known.

        Args:
            frame: events from `simulate.read_folder`, sorted by event time.
            rate: records of the events topic per second of wall time; None = as fast as possible.
            broken_share: share of the good events that are followed by a broken copy.
            duplicate_share: share of the good events that are sent again a little later.
            on_sent: called with the event id and the wall time (s) of every good event as it is sent.
            progress: called with the number of records sent and the total.
        """
        began_s = time.monotonic()
        plan = self._plan(frame, label_delay_ms, from_ms, until_ms, broken_share, duplicate_share, seed)
        breaker = _Breaker(self._stream)
        n = len(plan.row)
        end_ms = int(plan.stamp_ms[-1]) if n and until_ms is None else until_ms or 0
        size = BULK_RECORDS if rate is None else max(1, math.ceil(rate * LIVE_FLUSH_S))
        n_kind, n_broken, done = np.zeros(4, np.int64), Counter[str](), 0
        with self._connection.writer(linger_ms=_LINGER_MS) as writer:
            for begin, messages in self._messages(frame, plan, breaker, size, label_delay_ms, n_broken):
                if rate is not None:
                    time.sleep(max(0.0, began_s + int(n_kind[:_REPORT].sum()) / rate - time.monotonic()))
                for message, event_id in messages:
                    writer.send(message)
                    if on_sent and event_id is not None:
                        on_sent(event_id, time.time())
                done = begin + len(messages)
                n_kind += np.bincount(plan.kind[begin:done], minlength=4)
                self._flush_and_mark(writer, int(plan.stamp_ms[done]) if done < n else end_ms)
                if progress:
                    progress(done, n)
            if not n:
                self._flush_and_mark(writer, end_ms)
        wall_s = time.monotonic() - began_s
        n_events = int(n_kind[:_REPORT].sum())
        return Played(n_events, int(n_kind[_REPORT]), int(n_kind[_REPEATED]), dict(n_broken), wall_s)

    def finish(self) -> None:
        """Mark the end of the replay, so that all records sent can be scored."""
        with self._connection.writer(linger_ms=_LINGER_MS) as writer:
            self._flush_and_mark(writer, None)

    def _flush_and_mark(self, writer: Writer, below_ms: int | None) -> None:
        for topic, partition, offset in writer.flush():
            source = self._source_of.get((topic, partition))
            if source is not None:
                self._ends[source] = max(self._ends[source], offset + 1)
        mark = mark_bytes(below_ms, self._ends, self._n_partitions)
        writer.send(Message(self._stream.topic("clock"), mark, partition=0))
        writer.flush()

    def _plan(
        self,
        frame: pl.DataFrame,
        label_delay_ms: int,
        from_ms: int | None,
        until_ms: int | None,
        broken_share: float,
        duplicate_share: float,
        seed: int,
    ) -> _Schedule:
        times = frame[self._stream.event_time].dt.epoch("ms").to_numpy()
        rng = np.random.default_rng(seed)
        rows = np.arange(len(times))
        broken = rows[rng.random(len(rows)) < broken_share]
        repeated = rows[rng.random(len(rows)) < duplicate_share]
        later = rng.integers(*_LATER_MS, len(repeated))
        labels = self._stream.labels
        reported = np.flatnonzero(np.isin(frame[labels.column].to_numpy(), labels.sent)) if labels else rows[:0]
        stamp = np.concatenate([times, times[repeated] + later, times[broken], times[reported] + label_delay_ms])
        counts = [len(rows), len(repeated), len(broken), len(reported)]
        kind = np.repeat(np.array([_GOOD, _REPEATED, _BROKEN, _REPORT], np.int8), counts)
        row = np.concatenate([rows, repeated, broken, reported])
        order = np.argsort(stamp, kind="stable")
        first = 0 if from_ms is None else int(np.searchsorted(stamp[order], from_ms))
        last = len(order) if until_ms is None else int(np.searchsorted(stamp[order], until_ms))
        chosen = order[first:last]
        return _Schedule(stamp[chosen], kind[chosen], row[chosen])

    def _messages(
        self,
        frame: pl.DataFrame,
        plan: _Schedule,
        breaker: "_Breaker",
        size: int,
        label_delay_ms: int,
        n_broken: Counter[str],
    ) -> Iterator[tuple[int, list[tuple[Message, str | None]]]]:
        """Chunks of at most `size` messages, each with its event id if it is a good event."""
        stream = self._stream
        events, labels = stream.topic("events"), stream.topic("labels")
        truth = [stream.labels.column] if stream.labels else []
        fields = frame.select([*(f.name for f in stream.fields), *truth])
        reported = [stream.event_id, *stream.entities, stream.event_time]
        for begin in range(0, len(plan.row), size):
            part = slice(begin, begin + size)
            rows = zip(plan.row[part].tolist(), fields[plan.row[part]].iter_rows(named=True), strict=True)
            chunk: list[tuple[Message, str | None]] = []
            for kind, stamp_ms, (index, row) in zip(
                plan.kind[part].tolist(), plan.stamp_ms[part].tolist(), rows, strict=True
            ):
                key = text_of(row[stream.key]).encode()
                label = [row.pop(name) for name in truth]
                topic, event_id = events, None
                if kind == _REPORT:
                    report = {name: row[name] for name in reported}
                    value = _encode({**report, "label": label[0], "labelled_at": stamp_ms, "source": "replay"})
                    topic = labels
                elif kind == _BROKEN:
                    rule, key, value = breaker.broken(index, row, key, stamp_ms)
                    n_broken[rule] += 1
                else:
                    value = _encode(row)
                    event_id = text_of(row[stream.event_id]) if kind == _GOOD else None
                chunk.append((Message(topic, value, key, self._partition_of(key), stamp_ms), event_id))
            yield begin, chunk

    def _partition_of(self, key: bytes) -> int:
        partition = self._partitions.get(key)
        if partition is None:
            partition = self._partitions[key] = topics.partition_of(key, self._n_partitions)
        return partition


class _Breaker:
    """Makes broken copies of good events, one rule of the contract after the other."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._number = stream.field(stream.numbers[0]) if stream.numbers else None
        texts = [f for f in stream.fields if f.type in ("text", "category") and f.name != stream.key]
        self._text = texts[0] if texts else None
        rules = ["bad_json", "wrong_type", "missing_field", "out_of_range", "future_timestamp", "wrong_key"]
        rules += ["not_finite"] if self._number else []
        rules += ["too_long"] if self._text else []
        rules += ["too_big"] if stream.max_message_bytes < _LARGEST_BROKEN_BYTES else []
        self._rules = rules

    def broken(self, index: int, row: Mapping[str, Any], key: bytes, stamp_ms: int) -> tuple[str, bytes, bytes]:
        """The broken rule, the key and the message."""
        stream, number, time_field = self._stream, self._number, self._stream.event_time
        rule = self._rules[index % len(self._rules)]  # independent of how the replay is divided
        match rule:
            case "bad_json":
                return rule, key, _encode(row)[:-3]
            case "wrong_type":
                return rule, key, _encode({**row, (number.name if number else time_field): [1]})
            case "missing_field":
                return rule, key, _encode({name: value for name, value in row.items() if name != time_field})
            case "not_finite" if number:
                rest = _encode({name: value for name, value in row.items() if name != number.name})
                return rule, key, rest[:-1] + f',"{number.name}":NaN}}'.encode()
            case "out_of_range":
                return rule, key, _encode({**row, time_field: -1})
            case "future_timestamp":
                return rule, key, _encode({**row, time_field: stamp_ms + stream.future_tolerance_ms + DAY_MS})
            case "wrong_key":
                return rule, key + b"-other", _encode(row)
            case "too_long" if self._text:
                return rule, key, _encode({**row, self._text.name: "x" * (self._text.max_length + 1)})
            case _:
                return "too_big", key, _encode({**row, "padding": "x" * stream.max_message_bytes})
