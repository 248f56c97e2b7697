"""A scorer in a process of its own, with a linear model: `python -m tests.pipelines.live.live_scorer --help`."""

import argparse
import itertools
import logging
import signal
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipelines.contracts.stream import Stream
from pipelines.faults import kill_at, no_fault
from pipelines.kafka.connection import Connection
from pipelines.kafka.port import ANSWER_MS, FETCH_WAIT_MS, Position, Reader
from pipelines.live.scorer import Scorer
from pipelines.live.serving import Serving
from pipelines.live.setting import ScorerSetting
from pipelines.live.stopping import StopSignal
from pipelines.model import Model
from pipelines.record import Received
from tests.pipelines.kafka.adapters import ADAPTERS
from tests.pipelines.live.kill_stream import stream_named

SWAP_EVERY_S = 0.05
THRESHOLD = 1 - 2**-12  # a 32-bit number, like the scores


class Explained(NamedTuple):
    """No reasons: what is proven here is the way of the scores."""

    reasons: Sequence[dict[str, Any]]
    score_if_all_expected: float


class Linear:
    """a / (1 + a), a = |sum of (column number + 1) * value| * times, added from left to right: the same bits in any
    batch.
    """

    digest = "linear"
    times = 1.0
    threshold = THRESHOLD
    alert_rate: float | None = None
    ordered_threshold: float | None = None

    def __init__(self, stream: Stream) -> None:
        self.numeric_names, self.categorical_names = stream.numeric_columns, stream.categories

    def score(self, numeric: NDArray[np.float64], categorical: NDArray[np.uint64]) -> NDArray[np.float32]:
        total = np.zeros(len(numeric))
        for place in range(numeric.shape[1]):
            total += (place + 1) * np.nan_to_num(numeric[:, place])
        for place in range(categorical.shape[1]):
            total += (categorical[:, place] % np.uint64(7)).astype(np.float64)
        total = np.abs(total) * self.times
        return (total / (1 + total)).astype(np.float32)

    def explain(self, numeric: NDArray[np.float64], categorical: NDArray[np.uint64]) -> Sequence[Explained]:
        return [Explained((), 0.0)] * len(numeric)


class Doubled(Linear):
    """Another model."""

    digest = "doubled"
    times = 2.0


class LateReader(Reader):
    """Reads one partition late for a moment of every second and says that there is nothing more in it.

    With a negative wait, what lies there comes out of turn, at whatever pace the machine goes. What was there at the
    start is read as ever: progress records may promise that it comes before everything else.
    """

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._partition: Position | None = None
        self._end: int | None = None

    def assign(self, positions: Mapping[Position, int]) -> None:
        first = min((p for p in positions if p[0].endswith(".events")), default=None)
        if first != self._partition:
            self._partition, self._end = first, None
        self._reader.assign(positions)

    def poll(self, *, timeout_ms: int = FETCH_WAIT_MS) -> list[Received]:
        return self._reader.poll(timeout_ms=timeout_ms)

    def spans(self, partitions: Iterable[Position]) -> dict[Position, tuple[int, int]]:
        return self._reader.spans(partitions)

    def n_partitions(self, topic: str, *, timeout_ms: int = ANSWER_MS) -> int | None:
        return self._reader.n_partitions(topic, timeout_ms=timeout_ms)

    def position(self, position: Position) -> int:
        return self._reader.position(position)

    def close(self) -> None:
        self._reader.close()

    def hold(self, positions: Iterable[Position]) -> None:
        self._reader.hold({*positions, *self._late()})

    def ends(self, *, timeout_ms: int = ANSWER_MS) -> dict[Position, int]:
        found = self._reader.ends(timeout_ms=timeout_ms)
        if self._end is None and self._partition is not None:
            self._end = found.get(self._partition)
        return found | {p: self.position(p) for p in self._late()}

    def _late(self) -> set[Position]:
        if (
            self._partition is None
            or self._end is None
            or self.position(self._partition) < self._end
            or time.monotonic() % 1.0 > 0.2
        ):
            return set()
        return {self._partition}


class SmallPolls(Connection):
    """A connection whose readers give little at a time, so that every restore takes several polls."""

    def reader(self, positions: Mapping[Position, int], *, max_records: int = 500) -> Reader:
        return super().reader(positions, max_records=max_records)


class LateConnection(SmallPolls):
    """A connection whose readers are late ones."""

    def reader(self, positions: Mapping[Position, int], *, max_records: int = 500) -> Reader:
        return LateReader(super().reader(positions, max_records=max_records))


def jumping_clock() -> None:
    """Let the clock of this process jump at each SIGUSR2: an hour ahead, an hour back, to the right time."""
    right, ahead_s = time.time, itertools.cycle([3_600.0, -3_600.0, 0.0])
    now_ahead_s = [0.0]
    time.time = lambda: right() + now_ahead_s[0]
    signal.signal(signal.SIGUSR2, lambda *_: now_ahead_s.__setitem__(0, next(ahead_s)))


def swap_again_and_again(serving: Serving, other: Model) -> None:
    """Exchange two models, so that a death at any point is one soon before or after a swap."""
    while True:
        time.sleep(SWAP_EVERY_S)
        other, before = serving.champion, other
        serving.swap(before, on_trial=False)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--bootstrap", required=True)
    parser.add_argument("--client", default="kafka-python", choices=ADAPTERS)
    parser.add_argument("--stream", required=True)
    parser.add_argument("--snapshots", type=Path, required=True)
    parser.add_argument("--fault", default="")
    parser.add_argument("--orders", type=Path, help="at SIGUSR1, a file with another fault")
    parser.add_argument("--snapshot-every-s", type=float, default=1.0)
    parser.add_argument("--instance", help="of a static member of the group")
    parser.add_argument("--session-s", type=float, default=6.0)
    parser.add_argument("--order-wait-ms", type=int, default=50, help="below 0 a partition is read late now and then")
    asked = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    logging.getLogger("kafka").setLevel(logging.WARNING)
    stop = StopSignal()
    faults = [kill_at(asked.fault) if asked.fault else no_fault]
    jumping_clock()
    signal.signal(signal.SIGUSR1, lambda *_: faults.__setitem__(0, kill_at(asked.orders.read_text())))
    stream = stream_named(asked.stream)
    connection = SmallPolls if asked.order_wait_ms >= 0 else LateConnection
    setting = ScorerSetting(
        stream,
        connection(asked.bootstrap, adapter=ADAPTERS[asked.client]),
        asked.snapshots,
        snapshot_every=timedelta(seconds=asked.snapshot_every_s),
        order_wait=timedelta(milliseconds=asked.order_wait_ms),
        fault=lambda point: faults[0](point),
        instance_id=asked.instance,
        session=timedelta(seconds=asked.session_s),
    )
    serving = Serving(Linear(stream))
    threading.Thread(target=swap_again_and_again, args=(serving, Doubled(stream)), daemon=True).start()
    scorer = Scorer(setting, serving, start="earliest")
    try:
        scorer.run(stop.is_set)
    except BaseException:
        stop.failed()
        raise
    print("stopped", scorer.counters, flush=True)


if __name__ == "__main__":
    main()
