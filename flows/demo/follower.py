"""An ordinary consumer of scores and alerts, which measures how long each score took."""

import threading
import time

import numpy as np

from flows.serve.follow import n_alerted, readable_alerts, readable_scores
from pipelines.contracts.messages import Alert, AlertRecord, Score
from pipelines.contracts.stream import Stream
from pipelines.kafka import topics
from pipelines.kafka.connection import Connection


class Follower:
    """A read_committed consumer of scores and alerts, in a thread of its own."""

    def __init__(self, connection: Connection, stream: Stream) -> None:
        names = [stream.topic("scores"), stream.topic("alerts")]
        self._alerts_topic = names[1]
        ends = {position: end for position, (_, end) in topics.bounds(connection, names).items()}
        self._reader = connection.reader(ends)
        self._sent_s: dict[str, float] = {}
        self._read_s: dict[str, float] = {}
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="follower", daemon=True)
        self.scores: dict[str, Score] = {}
        self._alert_records: list[AlertRecord] = []
        self.last_read_s = time.monotonic()

    @property
    def alerts(self) -> list[Alert]:
        """The full alerts read so far."""
        return [record for record in list(self._alert_records) if isinstance(record, Alert)]

    @property
    def n_alerted(self) -> int:
        """Number of scores over the threshold that the records read so far account for."""
        return n_alerted(list(self._alert_records))

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join(timeout=10)
        self._reader.close()

    def sent(self, event_id: str, wall_s: float) -> None:
        """Note when an event was sent (`time.time()`); of duplicates the first counts."""
        self._sent_s.setdefault(event_id, wall_s)

    def latency_ms(self) -> dict[str, float]:
        """p50 and p99 from sending an event to reading its score."""
        waits = [1000 * (at - self._sent_s[i]) for i, at in self._read_s.items() if i in self._sent_s]
        p50, p99 = np.percentile(waits, [50, 99]) if waits else (float("nan"), float("nan"))
        return {"p50": round(float(p50), 1), "p99": round(float(p99), 1)}

    def _run(self) -> None:
        while not self._stopping.is_set():
            records = self._reader.poll()
            now_s = time.time()
            self._alert_records += readable_alerts([r for r in records if r.topic == self._alerts_topic])
            for score in readable_scores([r for r in records if r.topic != self._alerts_topic]):
                self.scores[score.event_id] = score
                self._read_s[score.event_id] = now_s
            if records:
                self.last_read_s = time.monotonic()
