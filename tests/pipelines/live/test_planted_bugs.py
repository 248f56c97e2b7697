"""The model-based test finds bugs: each of these, planted by hand, fails one of some hundred random schedules."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from pipelines.errors import InternalError
from pipelines.live import replica
from pipelines.live.lane import Lane
from pipelines.live.outbox import Outbox, Put
from pipelines.order import Merge
from tests.pipelines.live import simulated
from tests.pipelines.live.simulated import SimulatedLane
from tests.pipelines.live.test_replica import run, schedules, short_lists

MOST_SCHEDULES = 500
Patch = pytest.MonkeyPatch
__all__ = ["short_lists"]


def _does_nothing(*_args: Any, **_named: Any) -> None:
    pass


def a_take_over_publishes_what_others_have_published(patch: Patch) -> None:
    patch.setattr(Outbox, "cover", _does_nothing)


def places_out_of_turn_are_not_recorded(patch: Patch) -> None:
    put: Callable[[Outbox, Put], None] = Outbox.put
    patch.setattr(Outbox, "put", lambda outbox, given: put(outbox, replace(given, places=[])))


def a_restart_forgets_what_was_promised(patch: Patch) -> None:
    patch.setattr(replica, "furthest", lambda _progress: None)


def a_fenced_lane_goes_on(patch: Patch) -> None:
    patch.setattr(Lane, "_check_owner", _does_nothing)
    patch.setattr(SimulatedLane, "_wait_for_a_claim", _does_nothing)


def a_snapshot_ahead_of_what_is_published_is_taken(patch: Patch) -> None:
    patch.setattr(simulated, "is_ahead", lambda *_: False)


def a_replica_releases_what_it_happens_to_have_read(patch: Patch) -> None:
    patch.setattr(Merge, "_bound", lambda *_: float("inf"))


def an_outbox_that_overflowed_counts_as_complete(patch: Patch) -> None:
    def shed(outbox: Outbox) -> None:
        outbox._puts.clear()
        outbox.n_bytes = 0

    patch.setattr(Outbox, "shed", shed)


REFUSED_BY_THE_LANE = a_take_over_publishes_what_others_have_published, a_fenced_lane_goes_on  # before it publishes


@pytest.mark.parametrize(
    "plant",
    [
        a_take_over_publishes_what_others_have_published,
        places_out_of_turn_are_not_recorded,
        a_restart_forgets_what_was_promised,
        a_fenced_lane_goes_on,
        a_snapshot_ahead_of_what_is_published_is_taken,
        a_replica_releases_what_it_happens_to_have_read,
        an_outbox_that_overflowed_counts_as_complete,
    ],
    ids=lambda plant: plant.__name__,
)
def test_a_planted_bug_is_found(plant: Callable[[Patch], None], monkeypatch: Patch) -> None:
    n_run = 0

    @settings(
        max_examples=MOST_SCHEDULES, derandomize=True, database=None, deadline=None, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck), report_multiple_bugs=False,
    )  # fmt: skip
    @given(schedules, st.sampled_from((1, 2, 2, 4)))
    def search(schedule: bytes, n_replicas: int) -> None:
        nonlocal n_run
        n_run += 1
        run(schedule, n_replicas)

    plant(monkeypatch)
    by_the_lane = plant in REFUSED_BY_THE_LANE
    kind, words = (InternalError, "holds events that are published already") if by_the_lane else (AssertionError, None)
    with pytest.raises(kind, match=words):
        search()
    print(f"found by schedule {n_run}")
