"""A process that writes payments at a rate: `python -m tests.bench.stream.source BOOTSTRAP TOPIC`.

It reads lines "RATE SECONDS" from its input and answers each with the number of events sent since the start.
"""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Iterator

import msgspec
from confluent_kafka import Producer

from pipelines.kafka.topics import partition_of
from tests.bench.stream.backlog import N_PARTITIONS, customers_for, payments_of

TICK_S = 0.005
N_PAYMENTS = 60_000


def endless() -> Iterator[tuple[bytes, bytes, int]]:
    """Key, JSON and partition of payments of now, each with an id of its own."""
    frame = payments_of(N_PAYMENTS, customers_for(N_PAYMENTS))
    rows = []
    for row in frame.drop("label", "event_id", "time").iter_rows(named=True):
        key = row["customer_id"].encode()
        rest = msgspec.json.encode({name: cell for name, cell in row.items() if cell is not None})[1:]
        rows.append((key, rest, partition_of(key, N_PARTITIONS)))
    for again in itertools.count():
        for i, (key, rest, partition) in enumerate(rows):
            yield key, b'{"event_id":"%d-%d","time":%d,%b' % (again, i, time.time() * 1000, rest), partition


def main(bootstrap: str, topic: str) -> None:
    """Serve the lines of the input."""
    producer = Producer({"bootstrap.servers": bootstrap, "enable.idempotence": True, "linger.ms": 2, "log_level": 3})
    events, n_sent = endless(), 0
    next(events)  # prepares them
    print("ready", flush=True)
    for line in sys.stdin:
        rate, seconds = map(float, line.split())
        began, of_this = time.perf_counter(), 0
        while (elapsed := time.perf_counter() - began) < seconds:
            due = int(elapsed * rate) - of_this
            for key, value, partition in itertools.islice(events, due):
                producer.produce(topic, value, key, partition)
            of_this += due
            producer.poll(0)
            time.sleep(max(0.0, TICK_S - (time.perf_counter() - began - elapsed)))
        producer.flush(30)
        n_sent += of_this
        print(n_sent, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
