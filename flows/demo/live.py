"""The live part of a demo: a scorer process, events sent to it at a steady rate, and what came back."""

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flows.demo.follower import Follower
from flows.demo.source import N_PARTITIONS, Source
from flows.local import processes
from flows.local.processes import Process
from flows.progress import Report
from flows.settings import Settings
from pipelines.contracts.messages import Alert, Score
from pipelines.contracts.stream import Stream
from pipelines.errors import UnmaskError
from pipelines.play import producer

BROKEN_SHARE, DUPLICATE_SHARE = 0.01, 0.005
SILENCE_S = 600.0  # a long history is processed without a word in the log
STALL_S = 300.0


@dataclass(frozen=True)
class LiveRun:
    """What was sent and what came back.

    Args:
        scores: by event id.
        alerts: in the order in which they were read.
        n_sent: records sent to the events topic, broken and repeated ones too.
        rate: events per second that were asked for.
        sending_s: time it took to send them.
        scoring_s: time from the first event sent to the last score read.
        latency_ms: p50 and p99 from sending an event to reading its score.
    """

    scores: dict[str, Score]
    alerts: list[Alert]
    n_sent: int
    rate: float
    sending_s: float
    scoring_s: float
    latency_ms: dict[str, float]


@contextmanager
def scorer(stream_file: Path, stream: Stream, folder: Path) -> Iterator[Process]:
    """A scorer process that has processed the history and waits for events; it is stopped at the end."""
    settings = Settings()
    command = [sys.executable, "-m", "flows.cli", "score", "--stream", str(stream_file), "--from", "latest"]
    env = processes.inherited("KAFKA_", "UNMASK_", "MLFLOW_TRACKING_") | {"UNMASK_HOME": str(settings.home)}
    process = processes.launch("scorer", command, folder=folder, address="", env=env)
    try:
        process.wait_until_up(lambda: bool(read_status(stream).get("caught_up")), silence_s=SILENCE_S)
        yield process
    finally:
        process.stop()


def play(process: Process, source: Source, follower: Follower, *, rate: float, seed: int, report: Report) -> LiveRun:
    """Send the live part, and wait until each record is scored, refused or a duplicate and each score was read."""
    replayer = producer.Replayer(Settings().connection(), source.stream, n_partitions=N_PARTITIONS)
    began_s = time.monotonic()
    played = replayer.play(
        source.frame,
        label_delay_ms=source.label_delay_ms,
        from_ms=source.live_from_ms,
        until_ms=source.live_until_ms,
        rate=rate,
        broken_share=BROKEN_SHARE,
        duplicate_share=DUPLICATE_SHARE,
        seed=seed,
        on_sent=follower.sent,
        progress=lambda done, n: report(done / max(n, 1), f"{done:,} of {n:,} events and labels sent"),
    )
    replayer.finish()
    _await_scores(process, source.stream, follower, played.n_events, report)
    return LiveRun(
        scores=follower.scores,
        alerts=follower.alerts,
        n_sent=played.n_events,
        rate=rate,
        sending_s=played.wall_s,
        scoring_s=follower.last_read_s - began_s,
        latency_ms=follower.latency_ms(),
    )


def read_status(stream: Stream) -> dict[str, Any]:
    """The status file of the scorer; empty before it is written."""
    path = Settings().scorer_status(stream)
    return json.loads(path.read_text()) if path.exists() else {}


def outcomes(status: dict[str, Any]) -> tuple[int, int, int]:
    """How many events were scored, refused and duplicates."""
    return status.get("scored", 0), status.get("refused", 0), status.get("duplicates", 0)


def _await_scores(process: Process, stream: Stream, follower: Follower, n_sent: int, report: Report) -> None:
    seen, changed_s = (0, 0, 0), time.monotonic()
    while True:
        status = read_status(stream)
        scored, refused, duplicates = outcomes(status)
        n_done, n_read = scored + refused + duplicates, len(follower.scores)
        n_alerting = sum(s.alert for s in list(follower.scores.values()))
        n_alerted = follower.n_alerted + status.get("alerts_pending", 0)
        if n_done >= n_sent and n_read >= scored and n_alerted >= n_alerting:
            return
        came = f"{scored:,} scored + {refused:,} refused + {duplicates:,} duplicates of {n_sent:,} events sent"
        report(n_done / max(n_sent, 1), came)
        if not process.is_running:
            raise UnmaskError(f"the scorer ended: {came}. {process.log_end()}")
        if (n_done, n_read, n_alerted) != seen:
            seen, changed_s = (n_done, n_read, n_alerted), time.monotonic()
        if time.monotonic() - changed_s > STALL_S:
            raise UnmaskError(
                f"no progress for {STALL_S:.0f} s: {came}; {n_read:,} scores were read. {process.log_end()}"
            )
        time.sleep(0.1)
