"""Flow: pretrain, fine-tune and promote, one after the other, as after a drift."""

from pathlib import Path

from prefect import flow
from prefect.exceptions import CancelledRun

from flows.alone import alone
from flows.finetune import finetune
from flows.pretrain import pretrain
from flows.promote import Decision, promote
from flows.retries import retry_unless_mistaken
from flows.stages import run_log, run_name


class BusyError(Exception):
    """Another run of a stage is going."""


@flow(name="retrain", flow_run_name=run_name, retries=3, retry_delay_seconds=900)
@retry_unless_mistaken
@alone
def retrain(stream: Path, why: str = "") -> Decision:
    """Train a new encoder and a new model on what is known now, and promote it if it passes the gate.

    Args:
        stream: path of the stream file, or the name of a shipped stream.
        why: the reason, for the log.
    """
    run_log().info("training again: %s", why or "no reason was given")
    try:
        pretrain(stream)
        finetune(stream)
        return promote(stream)
    except CancelledRun as error:  # one of them is running already: again after a while
        raise BusyError(str(error)) from error
