"""The live scorer as a service. Does not use Prefect; MLflow is asked only which model to use."""

import gc
import logging
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager

from flows.serve.champion import following
from flows.serve.metrics import ScorerMetrics
from flows.serve.monitor import Monitor, Sample
from flows.serve.probes import probes
from flows.serve.status import StatusFile
from flows.settings import Settings
from pipelines import faults
from pipelines.contracts.stream import Stream
from pipelines.errors import OutboxOverflowError
from pipelines.live.scorer import Scorer
from pipelines.live.setting import ScorerSetting, StartFrom
from pipelines.live.stopping import StopSignal

log = logging.getLogger(__name__)

STATUS_EVERY_S = 0.5


def serve(
    settings: Settings,
    stream: Stream,
    *,
    start: StartFrom | None,
    replica: str | None,
    metrics_port: int | None = None,
    fault: faults.Fault,
) -> None:
    """Score until SIGTERM or Ctrl-C, then publish what can be published in a moment, write a snapshot and return.

    The process ends within 5 s of the signal, whatever hangs; the next scorer publishes the rest. Where an error ends
    it, closing takes at most 4 s, then the process ends within 5 s.

    Args:
        replica: name of this scorer among those of the stream; by default that of the host.
        metrics_port: where metrics and probes are served; None: nowhere.
    """
    stopping = StopSignal()
    log.info("the scorer of stream %s starts", stream.name)
    name = replica or socket.gethostname()
    follower = following(settings, stream, name=name)
    setting = ScorerSetting(stream, settings.connection(), settings.snapshots(stream), instance_id=name, fault=fault)
    status = StatusFile(settings.scorer_status(stream, replica))
    serving = follower.serving
    monitor = Monitor()
    metrics = ScorerMetrics(stream.name, name, monitor, setting.published, serving, lambda: follower.n_refused)
    with _served(metrics_port, monitor, metrics):
        follower.start()
        try:
            while not _run(Scorer(setting, serving, start=start), status, monitor, stopping):
                log.info("the state is restored")
        except BaseException:
            stopping.failed()
            raise
        finally:
            follower.stop()


@contextmanager
def _served(port: int | None, monitor: Monitor, metrics: ScorerMetrics) -> Iterator[None]:
    if port is None:
        yield
        return
    with probes(port, monitor, metrics) as used:
        log.info("metrics and probes are served on port %d", used)
        yield


def _run(scorer: Scorer, status: StatusFile, monitor: Monitor, stopping: StopSignal) -> bool:
    """Run a scorer; False if a new one must restore its state and continue."""
    written_s = [0.0]
    monitor.restored()

    def should_stop() -> bool:
        monitor.stepped()
        if time.monotonic() - written_s[0] > STATUS_EVERY_S:
            written_s[0] = time.monotonic()
            status.write(scorer)
            monitor.sample = Sample.of(scorer)
        monitor.is_stopping = stopping.is_set()
        return monitor.is_stopping

    gc.collect()
    gc.freeze()  # exclude loaded objects from garbage collection, which would pause the loop for 50 ms or more
    try:
        scorer.run(should_stop)
    except OutboxOverflowError as error:
        log.warning("%s", error)
        return False
    finally:
        status.write(scorer)
        monitor.sample = None
    return True
