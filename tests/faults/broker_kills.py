"""The broker dies under load, again and again: is each event scored once?

    python -m tests.faults.broker_kills --kills 24 --out FILE

Several scorers publish at once, so that most kills find a transaction open; with Kafka 4.4.0, the restarted broker then
sometimes writes no end of it. A minute for each kill. Exit code 1 if a score is missing or there twice.
"""

import argparse
import json
import logging
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from flows.local.kafka_server import Broker, start_broker
from pipelines.kafka import connection
from tests.patience import wait_until
from tests.pipelines.kafka.adapters import ADAPTERS
from tests.pipelines.live.rig import Rig, Running
from tests.pipelines.live.test_broker_restarts import end

BURSTS = 300, 800, 2_000  # events of a scorer just before a kill
AFTER = 200  # events once the broker is back


class Warnings(logging.Handler):
    """Counts what is told of transactions that were left open."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.n = 0

    def emit(self, record: logging.LogRecord) -> None:
        self.n += 1


def killed(broker: Broker, folder: Path, pause_s: float) -> Broker:
    """The broker after kill -9 and a restart."""
    end(broker, signal.SIGKILL)
    time.sleep(pause_s)
    return start_broker(folder, log=lambda _line: None)


def wrong(rig: Rig) -> dict[str, int]:
    """Events of a stream that have no score or several, with the number of their scores."""
    found = Counter(score["event_id"] for score in rig.scores())
    return {event: found[event] for n in range(rig.n_sent) if found[event := f"e{n}"] != 1}


def stop(runs: list[Running]) -> None:
    for run in runs:
        run.stop()


def settled(rigs: list[Rig], runs: list[Running]) -> list[str]:
    """Wait until all events are out; a scorer that has ended is started again. Returns why any has ended."""
    ended = list[str]()

    def are_out() -> bool:
        for k, run in enumerate(runs):
            if not run.is_alive:
                ended.append(str(run.error))
                runs[k] = Running(rigs[k].scorer())
        return all(rig.all_is_out() for rig in rigs)

    wait_until(are_out, seen=lambda: [rig.n_out for rig in rigs])
    return ended


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=24)
    parser.add_argument("--scorers", type=int, default=6, help="at once, each with a stream of its own")
    parser.add_argument("--client", choices=sorted(ADAPTERS), default="kafka-python")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    rng, told, kills = random.Random(asked.seed), Warnings(), list[dict[str, Any]]()
    logging.getLogger(connection.__name__).addHandler(told)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        broker = start_broker(folder / "kafka", log=print)
        try:
            rigs = [
                Rig(broker.bootstrap, folder / str(k), adapter=ADAPTERS[asked.client]) for k in range(asked.scorers)
            ]
            with ExitStack() as stack:
                runs = [Running(rig.scorer()) for rig in rigs]
                stack.callback(stop, runs)
                while len(kills) < asked.kills and not any(kill["wrong"] for kill in kills):
                    for rig in rigs:
                        rig.send(rng.choice(BURSTS))
                    time.sleep(rng.choice((0, 0, 0.05, 0.1, 0.2)))
                    began_s = time.monotonic()
                    broker = killed(broker, folder / "kafka", rng.choice((0, 0, 0.5, 2.0)))
                    for rig in rigs:
                        rig.send(AFTER)
                    ended = settled(rigs, runs)
                    found = {rig.stream.name: bad for rig in rigs if (bad := wrong(rig))}
                    kills.append({"wrong": found, "ended": ended, "pause_s": round(time.monotonic() - began_s, 1)})
                    print(
                        f"kill {len(kills)}: {sum(map(len, found.values()))} wrong, left open so far {told.n}",
                        flush=True,
                    )
                n_events = sum(rig.n_sent for rig in rigs)
        finally:
            broker.stop()
            if asked.out:
                asked.out.write_text(json.dumps(kills, indent=1) + "\n")
    n_wrong = sum(len(events) for kill in kills for events in kill["wrong"].values())
    figures = {"kills": len(kills), "events": n_events, "wrong": n_wrong, "left_open": told.n, "client": asked.client}
    print(json.dumps(figures, indent=1))
    if asked.out:
        asked.out.write_text(json.dumps(figures | {"each": kills}, indent=1) + "\n")
    return int(n_wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
