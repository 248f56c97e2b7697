"""The live scorer as a service. Does not use Prefect, and uses MLflow only to download the model at the start."""

import gc
import logging
import signal
import socket
import threading
import time

from flows.serve.model import champion
from flows.serve.status import StatusFile
from flows.settings import Settings
from pipelines import faults
from pipelines.contracts.stream import Stream
from pipelines.errors import OutboxOverflowError
from pipelines.live.scorer import Scorer
from pipelines.live.setting import ScorerSetting, StartFrom

log = logging.getLogger(__name__)

STATUS_EVERY_S = 0.5


def serve(
    settings: Settings, stream: Stream, *, start: StartFrom | None, replica: str | None, fault: faults.Fault
) -> None:
    """Score until SIGTERM or Ctrl-C, then publish all processed events, write a snapshot and return.

    Args:
        replica: name of this scorer among those of the stream; by default that of the host.
    """
    stopping = threading.Event()
    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, lambda *_: stopping.set())
    model = champion(settings, stream)
    setting = ScorerSetting(
        stream,
        settings.connection(),
        settings.snapshots(stream),
        instance_id=replica or socket.gethostname(),
        fault=fault,
    )
    status = StatusFile(settings.scorer_status(stream, replica))
    is_done = False
    while not is_done:
        is_done = _run(Scorer(setting, model, start=start), status, stopping)


def _run(scorer: Scorer, status: StatusFile, stopping: threading.Event) -> bool:
    """Run a scorer; False if a new one must restore its state and continue."""
    written_s = [0.0]

    def should_stop() -> bool:
        if time.monotonic() - written_s[0] > STATUS_EVERY_S:
            written_s[0] = time.monotonic()
            status.write(scorer)
        return stopping.is_set()

    gc.collect()
    gc.freeze()  # exclude loaded objects from garbage collection, which would pause the loop for 50 ms or more
    try:
        scorer.run(should_stop)
    except OutboxOverflowError as error:
        log.warning("%s", error)
        return False
    finally:
        status.write(scorer)
    return True
