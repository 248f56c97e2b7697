"""What stands still is told and ends; what works, has nothing to do, or was stopped itself is left alone."""

import logging

import pytest

from pipelines.errors import BrokerError
from pipelines.live.health import Busy, Seldom, Watch


def watch() -> Watch:
    return Watch(red_after_s=2.0, deadline_s=5.0)


def test_work_that_does_not_get_on_turns_red_and_then_raises() -> None:
    seen = watch()
    for now_s in range(2):
        seen.look({"lane 0": Busy(7, "no room"), "lane 1": Busy(now_s, "")}, float(now_s))
    assert seen.health == "ok"
    for now_s in range(2, 6):
        seen.look({"lane 0": Busy(7, "no room"), "lane 1": Busy(now_s, "")}, float(now_s))
    assert seen.health.startswith("stalled since 20")
    assert seen.health.endswith("lane 0: no room")
    with pytest.raises(BrokerError, match=r"lane 0: no progress for 5 s \(no room\); nothing is lost"):
        seen.check()
    seen.look({"lane 0": Busy(8, "no room")}, 6.0)
    assert seen.health == "ok"
    seen.check()


def test_what_may_be_the_doing_of_others_turns_red_and_never_raises() -> None:
    seen = watch()
    for now_s in range(100):
        seen.look({"reading": Busy(7, "", is_fatal=False)}, float(now_s))
    seen.check()
    assert seen.health.startswith("stalled since")


def test_nothing_to_do_is_no_stall() -> None:
    seen = watch()
    for now_s in range(100):
        seen.look({"lane 0": Busy(7, "")} if now_s % 2 else {}, float(now_s))
    assert seen.health == "ok"


def test_time_in_which_the_process_itself_stood_still_does_not_count() -> None:
    seen = watch()
    for now_s in (0.0, 1_000.0, 2_000.0):  # a step counts one second at most
        seen.look({"lane 0": Busy(7, "")}, now_s)
    seen.check()


def test_a_warning_that_repeats_itself_is_counted(caplog: pytest.LogCaptureFixture) -> None:
    seldom = Seldom(logging.getLogger("test"), every_s=1_000.0)
    for _ in range(3):
        seldom.warning("no %s", "room")
    seldom._due_s = -1.0
    seldom.warning("no %s", "room")
    assert [r.message for r in caplog.records] == ["no room", "no room (2 similar warnings suppressed)"]
