"""The status file of a scorer, for health checks and the demo."""

import json
import logging
import os
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pipelines.live.health import Seldom
from pipelines.live.scorer import Scorer
from pipelines.live.serving import Serving
from pipelines.live.shadow import Shadow

log = logging.getLogger(__name__)


class StatusFile:
    """The status file, updated periodically. If the disk is full or read-only, it is not updated; scoring continues."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._failed = Seldom(log)
        self.n_failed = 0

    def write(self, scorer: Scorer) -> None:
        """Replace the file. A failure is logged and counted."""
        draft = self._path.with_suffix(".new")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            draft.write_text(json.dumps(status_of(scorer) | {"n_status_failed": self.n_failed}))
            draft.replace(self._path)
        except OSError as error:
            self.n_failed += 1
            self._failed.warning("the status file was not written: %s; scoring continues", error)


def status_of(scorer: Scorer) -> dict[str, Any]:
    """The content of the status file: health, counts since the first start, size of the state, model.

    The counts are those of the partitions that this scorer follows, whoever has published them.
    """
    followed = sorted(p for state in scorer.states for p in state.partitions)
    published = [scorer.progress[p] for p in followed]
    return {
        "partitions": followed,
        "pid": os.getpid(),
        "at": time.time(),
        "health": scorer.health,
        "caught_up": scorer.caught_up,
        "model": scorer.model.digest,
        "threshold": scorer.model.threshold,
        "threshold_ordered": scorer.model.ordered_threshold is not None,
        "models_refused": scorer.serving.unusable | scorer.serving.refused,
        "shadow": _shadow_of(scorer.serving.shadow),
        "trial": _trial_of(scorer.serving),
        "scored": sum(p.n_scored for p in published),
        "refused": sum(p.n_refused for p in published),
        "duplicates": sum(p.n_duplicates for p in published),
        "alerts_pending": sum(p.alert_memory.n_pending for p in published if p.alert_memory),
        "shortened": sum(lane.n_shortened for lane in scorer.lanes),
        "lanes_rebuilt": sum(lane.n_rebuilt for lane in scorer.lanes),
        "entities": scorer.entities,
        "dormant": scorer.dormant,
        "state_bytes": scorer.n_bytes["state"],
        "remembered": scorer.remembered,
        **asdict(scorer.counters),
    }


def _trial_of(serving: Serving) -> dict[str, Any] | None:
    """The model that the champion on trial would be returned for, and how many events were compared."""
    previous, trial = serving.previous, serving.trial
    if previous is None or trial is None:
        return None
    return {"previous": previous.digest, "compared": trial.n_compared}


def _shadow_of(shadow: Shadow | None) -> dict[str, Any] | None:
    if shadow is None or shadow.digest is None:
        return None
    return {"model": shadow.digest, "scored": shadow.n_scored, "dropped": shadow.n_dropped, "failed": shadow.n_failed}
