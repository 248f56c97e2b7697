"""Unmask: the scorer as its service runs it, with a trained model."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from flows.serve.model import ColumnsByName
from models.ship import artifact
from models.ship.artifact import ServedModel
from pipelines.contracts.decode import Decoder
from pipelines.contracts.stream import Stream
from pipelines.features.state import State
from pipelines.kafka.connection import Connection
from pipelines.live.alerting import outcomes_of
from pipelines.live.scorer import Scorer
from pipelines.live.serving import Serving
from pipelines.live.setting import ScorerSetting
from pipelines.model import Model
from pipelines.order import EVENT, Source, SourceClock
from pipelines.record import Received
from tests.bench.stream.backlog import N_PARTITIONS
from tests.bench.stream.streams import stream_of
from tests.bench.stream.task import Meter, Task
from tests.pipelines.live.rig import Fixed

_MODULES = {"kafka-python": ("kafka_python", "KafkaPython"), "confluent": ("confluent", "Confluent")}
CLIENTS = tuple(client for client, (module, _) in _MODULES.items() if find_spec(f"pipelines.kafka.{module}"))
FORMS = ("events", "packed")
ONE_IN = 200


class Budgeted(ColumnsByName):
    """Raises an alert for one event in `ONE_IN`, which is the budget of the stream, whatever the events are.

    A storm of alerts would be measured instead: live payments of a few hundred customers come a thousand times as fast
    as real ones, and half of them would alert; of a backlog with no labels, 9 % on the merged stream.
    """

    def __init__(self, model: ServedModel, stream: Stream) -> None:
        super().__init__(model, stream)
        self.threshold, self._n = 0.5, 0

    def score(self, numeric: NDArray[np.float64], categorical: NDArray[np.uint64]) -> NDArray[np.float32]:
        found = super().score(numeric, categorical) * np.float32(0.5)
        found[-self._n % ONE_IN :: ONE_IN] = 1.0
        self._n += len(found)
        return found


def unmask(task: Task, meter: Meter) -> None:
    """Score until the last event is out; what the loop writes beside that (snapshots) counts too."""
    stream = msgspec.structs.replace(stream_of(task.stream, task.topics), packed_scores=task.form == "packed")
    served = artifact.load(Path(task.folder) / "model")
    model = Budgeted(served, stream)
    _compile(stream, model)
    module, adapter = _MODULES[task.client]
    adapter_of = getattr(import_module(f"pipelines.kafka.{module}.client"), adapter)
    connection = Connection(task.bootstrap, adapter=adapter_of)
    setting = ScorerSetting(stream, connection, Path(task.state) / "snapshots")
    member = Fixed(range(N_PARTITIONS) if task.partitions is None else task.partitions)
    scorer = Scorer(setting, Serving(model), start="earliest", member=member)
    meter.start()
    scorer.run(lambda: meter.passed(sum(lane.progress.next_offset for lane in scorer.lanes if lane.progress)))
    meter.more["alerts"] = sum(lane.n_alerts for lane in scorer.lanes)
    meter.more["commits"] = sum(lane.n_commits for lane in scorer.lanes)
    meter.more["out_of_turn"] = scorer.counters.n_out_of_turn
    meter.more["snapshots"] = scorer.counters.n_snapshots


def _compile(stream: Stream, model: Model) -> None:
    """Fold and score an event, with an alert, so that compiling is not measured."""
    clock = SourceClock(Source(EVENT, 0))
    value = b'{"event_id":"e","time":0,"customer_id":"c","terminal_id":"t","amount":1}'
    block = State(stream, 1).fold(Decoder(stream).block(clock.run([Received("e", 0, 0, 1, b"c", value)])))
    outcomes_of(block, stream, model)
    model.explain(np.asarray(block.numeric), np.asarray(block.category_hashes))
