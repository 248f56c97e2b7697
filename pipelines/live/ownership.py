"""Ownership: the partitions that this replica publishes. Each is claimed and released while the others run."""

import logging
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Executor, Future
from typing import NamedTuple

from pipelines.contracts.messages import Progress
from pipelines.errors import BrokerError, FencedError, InternalError, LoginError, RejectedError
from pipelines.kafka.port import Assignment
from pipelines.live.health import Busy
from pipelines.live.lane import Lane
from pipelines.live.outbox import Outbox
from pipelines.live.stopping import all_within
from pipelines.live.takeover import cover

log = logging.getLogger(__name__)

Claim = Callable[[Mapping[int, Outbox]], list[Lane]]
REGRANT_S = 30.0  # how long a fenced partition may wait for a newer generation of the group
AGAIN_S = 5.0  # before a fenced partition is claimed again though the generation is the same: a slow claim may be over
RETRY_S = 1.0
CLAIM_END_S = 1.0  # for a claim under way when the scorer stops


class Claiming(NamedTuple):
    """Partitions that are being claimed, since which generation of the group."""

    outboxes: dict[int, Outbox]
    lanes: Future[list[Lane]]
    generation: int


class Fencing(NamedTuple):
    """That another scorer has taken over a partition: since which generation of the group, noticed when, how often."""

    generation: int
    noticed_s: float  # by a monotonic clock
    n: int


class Ownership:
    """Follows the assignments of the group: claims new partitions, releases lost ones, drops fenced ones.

    A fenced partition that the group still gives to this replica is claimed again at once if the generation is newer
    than that of the last transaction here. (The generation in which the fencing is noticed tells nothing: a replica
    that stood still may have joined again before it notices.) In the same generation it is claimed once more after
    `AGAIN_S`, because a claim of an earlier generation may have ended late; more often, two scorers would fence each
    other for ever. Then, if no newer generation comes within `regrant_s`, a stranger has taken over, and FencedError is
    raised.

    Args:
        claim: fences the previous owners of partitions, and returns the claimed lanes; called in another thread.
        progress: what is published of every partition.
        owner: the identity of this replica in progress records.
        stall_s: how long claims may fail.
        is_warm: whether the events of other replicas' partitions are folded here, too.
        aside: where partitions are claimed and released.
    """

    def __init__(
        self,
        claim: Claim,
        progress: Mapping[int, Progress],
        *,
        owner: str,
        regrant_s: float = REGRANT_S,
        stall_s: float,
        is_warm: bool = True,
        aside: Executor,
    ) -> None:
        self.outboxes = [Outbox(is_warm=is_warm) for _ in progress]
        for partition, record in progress.items():
            outbox = self.outboxes[partition]
            outbox.next_offset = outbox.complete_from = record.next_offset
        self.lanes: dict[int, Lane] = {}
        self.n_claims = self.n_fenced = 0
        self._claim, self._owner, self._regrant_s, self._stall_s = claim, owner, regrant_s, stall_s
        self._told = dict(progress)
        self._missed: dict[int, list[tuple[Progress, int]]] = {}
        self._generation = -1  # when `follow` was last called
        self._held: dict[int, tuple[int, int]] = {}  # partition -> generation and number of its last transaction
        self._fencings: dict[int, Fencing] = {}  # the last one of each partition
        self._claiming: Claiming | None = None
        self._leaving: dict[int, Future[None]] = {}
        self._retry_s = self._trouble_since_s = 0.0
        self._aside = aside

    @property
    def progress(self) -> dict[int, Progress]:
        """What is published of every partition, here or by other replicas."""
        own = {p: lane.progress for p, lane in self.lanes.items() if lane.progress is not None}
        return self._told | own

    @property
    def n_bytes(self) -> int:
        """Memory of the outboxes that this replica publishes, or is about to."""
        return sum(self.outboxes[p].n_bytes for p in self._own)

    @property
    def _own(self) -> set[int]:
        """Partitions owned or being claimed."""
        return self.lanes.keys() | (self._claiming.outboxes.keys() if self._claiming else set())

    @property
    def is_settled(self) -> bool:
        """Whether no partition is being claimed or released."""
        return self._claiming is None and not self._leaving

    def follow(self, assigned: Assignment) -> None:
        """Bring the lanes closer to an assignment; does not wait.

        Raises:
            FencedError: a stranger has taken over a partition.
            RestoreError: a partition may not be claimed.
            BrokerError: partitions could not be claimed before the deadline.
        """
        self._end_claims(assigned)
        self._end_leaves()
        self._note_transactions()
        self._drop_fenced(assigned)
        for partition in self.lanes.keys() - assigned.partitions - self._leaving.keys():
            self._leaving[partition] = self._aside.submit(self.lanes[partition].leave)
        barred = {partition for partition in self._fencings if not self._may_return(partition, assigned)}
        wanted = assigned.partitions - self.lanes.keys() - barred
        if wanted and self._claiming is None and time.monotonic() >= self._retry_s:
            outboxes = {partition: self.outboxes[partition] for partition in sorted(wanted)}
            self._claiming = Claiming(outboxes, self._aside.submit(self._claim, outboxes), assigned.generation)
        self._generation = assigned.generation

    def claim_now(self, claim: Claim, partitions: Iterable[int]) -> None:
        """Claim partitions and wait for it; their lanes begin with `start`."""
        self._add(claim({partition: self.outboxes[partition] for partition in partitions}), self._generation)

    def start(self) -> None:
        """Start the threads of lanes that were claimed before."""
        for lane in self.lanes.values():
            lane.start()

    def tailed(self, partition: int, progress: Progress, offset: int) -> None:
        """Regard a progress record, at an offset of its topic: what this or another replica has published."""
        lane = self.lanes.get(partition)
        if lane is None:
            self._cover(partition, progress, offset)
        elif lane.progress is None or _n_told(progress) > _n_told(lane.progress):
            # A successor's, or of a transaction of the lane itself whose outcome it does not know yet.
            missed = self._missed.get(partition, [])
            if lane.progress is not None:
                missed = [one for one in missed if _n_told(one[0]) > _n_told(lane.progress)]
            self._missed[partition] = [*missed, (progress, offset)]
        else:
            self.outboxes[partition].told_until = offset + 1

    def shed(self, max_bytes: int) -> None:
        """Bound the memory of the outboxes of other replicas' partitions.

        Those of partitions that are being claimed stay: the claim may have found them complete already.
        """
        own = self._own
        others = {p: outbox for p, outbox in enumerate(self.outboxes) if p not in own}
        if sum(outbox.n_bytes for outbox in others.values()) > max_bytes:
            largest = max(others, key=lambda p: others[p].n_bytes)
            log.warning("the outbox of partition %d is dropped: its owner has not published it", largest)
            others[largest].shed()

    def busy(self) -> dict[str, Busy]:
        """Lanes with something to publish, for the health check."""
        return {
            f"publishing partition {p}": Busy(lane.n_commits, lane.trouble or "the commit does not return")
            for p, lane in list(self.lanes.items())
            if len(lane.outbox)
        }

    def release(self, until_s: float) -> list[BaseException]:
        """Publish what can be published of the outboxes and close all lanes in parallel; returns the failures of lanes.

        A lane that a successor has fenced while it stopped, or that could not reach Kafka then, has not failed.
        `until_s` is a time of the monotonic clock.
        """
        claiming, self._claiming = self._claiming, None
        if claiming is not None:
            try:
                wait_s = min(CLAIM_END_S, max(until_s - time.monotonic(), 0.0))
                self._add(claiming.lanes.result(wait_s), claiming.generation)
            except Exception as error:
                log.warning("the last claim failed: %s", error or "it has not ended")
        lanes = list(self.lanes.values())
        all_within(until_s, [lane.stop for lane in lanes])
        failures = []
        for lane in lanes:
            failure, is_rejected = lane.failure, isinstance(lane.failure, LoginError | RejectedError)
            if isinstance(failure, FencedError) and lane.was_stopping:
                log.warning("partition %d: another scorer has taken over and publishes the rest", lane.partition)
            elif isinstance(failure, BrokerError) and lane.was_stopping and not is_rejected:
                log.warning("partition %d: the next scorer publishes the rest: %s", lane.partition, failure)
            elif failure is not None:
                failures.append(failure)
        return failures

    def _add(self, lanes: Iterable[Lane], generation: int, *, start: bool = False) -> None:
        for lane in lanes:
            self.n_claims += 1
            self.lanes[lane.partition] = lane
            self._held[lane.partition] = generation, lane.n_commits
            if start:
                lane.start()

    def _end_claims(self, assigned: Assignment) -> None:
        if self._claiming is None or not self._claiming.lanes.done():
            return
        (outboxes, lanes, generation), self._claiming = self._claiming, None
        now_s = time.monotonic()
        try:
            self._add(lanes.result(), generation, start=True)
        except FencedError as error:
            log.warning("partitions %s: %s", list(outboxes), error)
            for partition in outboxes:
                self._fence(partition, generation)
        except (LoginError, RejectedError):
            raise
        except BrokerError as error:
            self._trouble_since_s = self._trouble_since_s or now_s
            if now_s - self._trouble_since_s > self._stall_s:
                raise
            log.warning("partitions %s could not be claimed: %s; trying again", list(outboxes), error)
            self._retry_s = now_s + RETRY_S
        else:
            self._trouble_since_s = 0.0
            log.info("partitions %s are claimed, generation %d", list(outboxes), generation)

    def _end_leaves(self) -> None:
        for partition, done in list(self._leaving.items()):
            if done.done():
                del self._leaving[partition]
                done.result()
                log.info("partition %d is released", partition)
                self._remove(partition)

    def _note_transactions(self) -> None:
        """Keep in which generation each lane has committed; if a new one came meanwhile, it was in the older one."""
        for partition, lane in self.lanes.items():
            if lane.n_commits != self._held[partition][1]:
                self._held[partition] = self._generation, lane.n_commits

    def _drop_fenced(self, assigned: Assignment) -> None:
        for partition, lane in list(self.lanes.items()):
            if partition in self._leaving:
                continue
            if isinstance(lane.failure, FencedError):
                self.n_fenced += 1
                self._fence(partition, self._held[partition][0])
                if self._regrant_s:
                    log.warning("%s; waiting for the group", lane.failure)
                    lane.leave()
                    self._remove(partition)
            if lane.failure is not None and not (isinstance(lane.failure, FencedError) and self._regrant_s):
                raise lane.failure
            if lane.is_dead and lane.failure is None:
                raise InternalError(f"the thread of partition {partition} ended unexpectedly")
        for partition, fencing in list(self._fencings.items()):
            if partition not in assigned.partitions:
                del self._fencings[partition]
            elif (
                partition not in self._own
                and not self._may_return(partition, assigned)
                and time.monotonic() - fencing.noticed_s > self._regrant_s
            ):
                raise FencedError(f"partition {partition}: another scorer has taken over, which is not in this group")

    def _fence(self, partition: int, generation: int) -> None:
        before = self._fencings.get(partition)
        n = before.n if before is not None and before.generation == generation else 0
        self._fencings[partition] = Fencing(generation, time.monotonic(), n + 1)

    def _may_return(self, partition: int, assigned: Assignment) -> bool:
        fencing = self._fencings[partition]
        is_over = fencing.n == 1 and time.monotonic() - fencing.noticed_s >= AGAIN_S
        return assigned.generation > fencing.generation or is_over

    def _remove(self, partition: int) -> None:
        """A lane is gone: what it has published, and what others have meanwhile, leaves the outbox."""
        lane = self.lanes.pop(partition)
        if lane.progress is not None:
            self._told[partition] = lane.progress
            lane.outbox.cover(lane.progress.next_offset)
        if not lane.outbox.is_warm:
            lane.outbox.restart(lane.outbox.next_offset)
        for progress, offset in self._missed.pop(partition, []):
            self._cover(partition, progress, offset)

    def _cover(self, partition: int, progress: Progress, offset: int) -> None:
        if progress.next_offset >= self._told[partition].next_offset:
            self._told[partition] = progress
        cover(self.outboxes[partition], progress, offset)


def _n_told(progress: Progress) -> tuple[int, int]:
    """How much was published by a record and those before it."""
    return progress.next_offset, progress.n_out_of_turn
