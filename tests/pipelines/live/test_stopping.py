"""The end of a scorer's process by an error, while something hangs."""

import subprocess
import sys

FAILS = """
import threading, time
from pipelines.live.stopping import StopSignal, all_within

stopping = StopSignal(within_s=0.5)
threading.Thread(target=threading.Event().wait).start()
all_within(time.monotonic() + 0.2, [threading.Event().wait, lambda: 1 / 0])
try:
    raise OSError("no memory")
except OSError:
    stopping.failed()
    raise
"""


def test_a_scorer_that_fails_ends_in_time_whatever_hangs() -> None:
    ended = subprocess.run([sys.executable, "-c", FAILS], capture_output=True, text=True, timeout=60)
    assert ended.returncode == 1
    for said in ("ZeroDivisionError", "no memory", "has not ended within 0.5 s"):
        assert said in ended.stderr
