"""Flow: pretrain, fine-tune and promote, one after the other, as after a drift."""

from pathlib import Path

from prefect import flow

from flows.alone import alone
from flows.finetune import finetune
from flows.pretrain import pretrain
from flows.promote import Decision, promote
from flows.retries import retry_unless_mistaken
from flows.stages import run_log, run_name


@flow(name="retrain", flow_run_name=run_name)
@retry_unless_mistaken
@alone
def retrain(stream: Path, why: str = "") -> Decision:
    """Train a new encoder and a new model on what is known now, and promote it if it passes the gate.

    Args:
        stream: path of the stream file, or the name of a shipped stream.
        why: the reason, for the log.
    """
    run_log().info("training again: %s", why or "no reason was given")
    pretrain(stream)
    finetune(stream)
    return promote(stream)
