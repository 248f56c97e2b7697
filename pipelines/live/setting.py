"""The setting of a scorer: its stream, folders, limits and timeouts."""

from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Literal

from pipelines.contracts.stream import Stream
from pipelines.faults import Fault, no_fault
from pipelines.features.bucket import Place
from pipelines.kafka.connection import Connection
from pipelines.live.metrics import Published

StartFrom = Literal["earliest", "latest"]


@dataclass(frozen=True)
class ScorerSetting:
    """Folders, limits and timeouts of a scorer."""

    stream: Stream
    connection: Connection
    snapshots: Path | Place
    snapshot_every: timedelta = timedelta(seconds=30)
    order_wait: timedelta = timedelta(milliseconds=50)  # tolerance for the broker's clock and latency
    stall_deadline: timedelta = timedelta(minutes=5)  # time without progress after which the scorer ends
    health_after: timedelta = timedelta(seconds=30)  # time without progress after which health is red
    check_topics_every: timedelta = timedelta(seconds=20)
    session: timedelta = timedelta(seconds=20)  # without a heartbeat for so long, other replicas take over
    instance_id: str | None = None  # of a static member (KIP-345): its restart within `session` moves no partition
    max_outbox_bytes: int = 64 << 20  # of the partitions owned, and of the others
    max_in_hand_bytes: int = 128 << 20  # of buffered records that wait for those of other partitions
    fault: Fault = no_fault
    published: Published = field(default_factory=Published)  # counts what all lanes publish
