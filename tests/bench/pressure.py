"""Memory of a scorer whose input is ten times what it can score, on a real broker.

    python -m tests.bench.pressure [--client confluent-kafka] [--seconds 30] [--times 10] [--out pressure.json]

The scorer is a process of its own with a linear model. First a backlog shows how fast it is, then a producer sends at
so many times that rate; each second its metrics give resident memory, outbox, records in hand and state. It ends with
SIGTERM in the middle of the load. Exit code 1 if what the load adds to resident memory is more than `MAX_ADDED_MB`,
beside the growth of the state, or if memory beside the named parts grows in the last third, or if the end takes longer
than 5 s.
"""

import argparse
import json
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import NamedTuple

from flows.local.kafka_server import start_broker
from pipelines.kafka.confluent.client import Confluent
from pipelines.kafka.connection import Connection
from pipelines.kafka.port import Message
from tests.flows.serve.test_probes import asked, metrics_at
from tests.flows.serve.test_service import port_of, served
from tests.patience import wait_until
from tests.pipelines.live.rig import Rig

MAX_ADDED_MB = 300  # 64 MiB of outbox, 128 MiB of records in hand, and what Kafka's client and Python hold beside them
MAX_GROWTH = 0.05  # of the memory in the last third, over that of the second
STOP_S = 5.0
N_WARM, N_CARDS = 30_000, 5_000
MB = 1e6


class Moment(NamedTuple):
    """What the scorer's metrics say at a time since the load began, s; memory in MB."""

    at_s: float
    sent: int
    scored: int
    lag: int
    resident: float
    outbox: float
    in_hand: float
    state: float

    @property
    def beside(self) -> float:
        """Resident memory beside the parts that the metrics name, MB."""
        return self.resident - self.outbox - self.in_hand - self.state


class Load(threading.Thread):
    """Sends events at a rate, or all at once, until `stopping` is set or `n` are sent."""

    def __init__(self, rig: Rig, *, per_s: float = float("inf"), n: float = float("inf")) -> None:
        super().__init__(name="load", daemon=True)
        self._rig, self._per_s, self._n = rig, per_s, n
        self.stopping, self.sent = threading.Event(), 0

    def run(self) -> None:
        topic, began_s = self._rig.stream.topic("events"), time.monotonic()
        with Connection(self._rig.connection.bootstrap, adapter=Confluent).writer() as writer:
            while not self.stopping.is_set() and self.sent < self._n:
                due = min(self._n, self.sent + 1_000, (time.monotonic() - began_s) * self._per_s)
                now_ms = int(time.time() * 1000)
                while self.sent < due:
                    i = self._rig.n_sent
                    card = b"c%d" % (i % N_CARDS)
                    event = b'{"id": "e%d", "at": %d, "card": "%s", "shop": %d, "amount": 5}' % (
                        i,
                        now_ms,
                        card,
                        i % 900,
                    )
                    writer.send(Message(topic, event, card))
                    self._rig.n_sent, self.sent = i + 1, self.sent + 1
                if self._per_s != float("inf"):
                    time.sleep(0.005)
            writer.flush()


def total(metrics: dict[str, float], name: str) -> float:
    return sum(value for at, value in metrics.items() if at.startswith(name))


def moment(port: int, began_s: float, sent: int) -> Moment:
    told = metrics_at(port)
    part = {name: told.get(f"unmask_memory_bytes{{part={name}}}", 0.0) / MB for name in ("outbox", "input", "state")}
    return Moment(
        round(time.monotonic() - began_s, 1),
        sent,
        int(told["unmask_events_scored_total"]),
        int(total(told, "unmask_lag_records")),
        round(told["process_resident_memory_bytes"] / MB, 1),
        *(round(part[name], 1) for name in ("outbox", "input", "state")),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--client", default="kafka-python", choices=("kafka-python", "confluent-kafka"))
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--times", type=float, default=10.0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        broker = start_broker(folder / "kafka", log=lambda line: None)
        try:
            found = measured(Rig(broker.bootstrap, folder), folder, options)
        finally:
            broker.stop()
    if options.out:
        options.out.write_text(json.dumps(found, indent=1))
    print(json.dumps({name: value for name, value in found.items() if name != "rows"}))
    sys.exit(0 if found["holds"] else 1)


def measured(rig: Rig, folder: Path, options: argparse.Namespace) -> dict[str, object]:
    """The figures of one run, and whether the bounds hold."""
    words = ("--from", "earliest", "--metrics-port", "0")
    with served(rig, folder, *words, KAFKA_CLIENT=options.client) as process:
        port = port_of(folder, process)
        wait_until(lambda: asked(port, "/readyz")[0] == 200, alive=lambda: process.poll() is None)
        rate = drain_rate(rig, port)
        rest = moment(port, time.monotonic(), 0)
        print(f"scores {rate:,.0f} events/s, {rest.resident:,.0f} MB at rest; now {options.times:g} times as many")
        load, began_s, rows = Load(rig, per_s=options.times * rate), time.monotonic(), list[Moment]()
        load.start()
        while time.monotonic() - began_s < options.seconds:
            time.sleep(1.0)
            rows.append(moment(port, began_s, load.sent))
            print(" ".join(f"{name} {value:,}" for name, value in rows[-1]._asdict().items()), flush=True)
        stopped_s = time.monotonic()
        process.send_signal(signal.SIGTERM)
        code = process.wait(60)
        stop_s = time.monotonic() - stopped_s
        load.stopping.set()
        load.join()
    added = max(row.resident - rest.resident - max(row.state - rest.state, 0.0) for row in rows)
    thirds = [rows[len(rows) * i // 3 : len(rows) * (i + 1) // 3] for i in range(3)]
    second, last = (max(row.beside for row in third) for third in thirds[1:])
    seconds = rows[-1].at_s
    return {
        "client": options.client,
        "scored_per_s": round(rate),
        "sent_per_s": round(rows[-1].sent / seconds),
        "scored_per_s_under_load": round((rows[-1].scored - rest.scored) / seconds),
        "resident_mb_at_rest": rest.resident,
        "resident_mb_most": max(row.resident for row in rows),
        "added_mb_most": round(added, 1),
        "growth_in_last_third": round(last / second - 1, 3),
        "outbox_mb_most": max(row.outbox for row in rows),
        "in_hand_mb_most": max(row.in_hand for row in rows),
        "lag_at_end": rows[-1].lag,
        "stop_s": round(stop_s, 2),
        "holds": bool(added <= MAX_ADDED_MB and last <= second * (1 + MAX_GROWTH) and stop_s < STOP_S and code == 0),
        "rows": [row._asdict() for row in rows],
    }


def drain_rate(rig: Rig, port: int) -> float:
    """Events that the scorer scores in a second, from a backlog; a first one compiles and fills the state."""
    for _ in range(2):
        load, began = Load(rig, n=N_WARM), moment(port, time.monotonic(), 0).scored
        load.start()
        load.join()
        began_s = time.monotonic()
        first = moment(port, began_s, 0).scored
        wait_until(lambda: moment(port, began_s, 0).scored >= began + N_WARM)  # noqa: B023
    return (began + N_WARM - first) / (time.monotonic() - began_s)


if __name__ == "__main__":
    main()
