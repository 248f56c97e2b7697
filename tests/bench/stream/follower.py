"""A process that reads the scores as a consumer would: `python -m tests.bench.stream.follower BOOTSTRAP TOPIC WHERE`.

The latency of a score is the time of this machine when it was returned by the consumer, less the broker's time stamp
of its event. WHERE says where that is: "value" (`arrival` of the score) or "record" (its time stamp: `bare`). A line
"SINCE UNTIL" (s since 1970) is answered with the number of all scores so far and the latencies (ms) of those between.
"""

from __future__ import annotations

import sys
import threading
import time
from datetime import datetime

import msgspec
from confluent_kafka import Consumer, TopicPartition

from tests.bench.stream.backlog import N_PARTITIONS


class _Score(msgspec.Struct):
    arrival: datetime


class Seen(msgspec.Struct):
    """What a follower answers."""

    n: int
    latencies_ms: list[float]


def main(bootstrap: str, topic: str, where: str) -> None:
    """Follow, and serve the lines of the input."""
    seen: list[tuple[float, float]] = []
    threading.Thread(target=_follow, args=(bootstrap, topic, where == "record", seen), daemon=True).start()
    print("ready", flush=True)
    for line in sys.stdin:
        since, until = map(float, line.split())
        found = [round(ms, 1) for at, ms in list(seen) if since <= at < until]
        print(msgspec.json.encode(Seen(len(seen), found)).decode(), flush=True)


def _follow(bootstrap: str, topic: str, in_record: bool, seen: list[tuple[float, float]]) -> None:
    decode = msgspec.json.Decoder(_Score).decode
    consumer = Consumer(
        {
            "bootstrap.servers": bootstrap,
            "group.id": "follower",
            "enable.auto.commit": False,
            "isolation.level": "read_committed",
            "fetch.wait.max.ms": 10,
        }
    )
    consumer.assign([TopicPartition(topic, p, 0) for p in range(N_PARTITIONS)])
    while True:
        records = consumer.consume(1_000, 0.002)
        now = time.time()
        for record in records:
            value = record.value()
            if record.error() is None and value:
                at = record.timestamp()[1] / 1000 if in_record else decode(value).arrival.timestamp()
                seen.append((now, 1000 * (now - at)))


if __name__ == "__main__":
    main(*sys.argv[1:])
