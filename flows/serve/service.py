"""The live scorer as a service. Does not use Prefect, and uses MLflow only to download the model at the start."""

import gc
import signal
import threading
import time

from flows.serve.model import champion
from flows.serve.status import StatusFile
from flows.settings import Settings
from pipelines import faults
from pipelines.contracts.stream import Stream
from pipelines.live.scorer import Scorer
from pipelines.live.setting import ScorerSetting, StartFrom

STATUS_EVERY_S = 0.5


def serve(settings: Settings, stream: Stream, *, start: StartFrom | None, fault: faults.Fault) -> None:
    """Score until SIGTERM or Ctrl-C, then publish all processed events, write a snapshot and return."""
    stopping = threading.Event()
    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, lambda *_: stopping.set())
    model = champion(settings, stream)
    setting = ScorerSetting(stream, settings.connection(), settings.snapshots(stream), fault=fault)
    scorer = Scorer(setting, model, start=start)
    status = StatusFile(settings.scorer_status(stream))
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
    finally:
        status.write(scorer)
