"""The scorers of a round, each a process with a log for every life."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from pipelines.contracts.stream import Stream
from tests.patience import HANG_S, wait_until

SESSION_S = 6.0
_OWNER = re.compile(r"this replica is (\w+)")


class Life:
    """One life of a replica."""

    def __init__(self, name: str, process: "subprocess.Popen[bytes]", log: Path, orders: Path) -> None:
        self.name, self.process, self.log, self._orders = name, process, log, orders

    @property
    def is_alive(self) -> bool:
        return self.process.poll() is None

    @property
    def owner(self) -> str | None:
        """What it is called in progress records; None until it has said so."""
        found = _OWNER.search(self.log.read_text(errors="replace"))
        return found[1] if found else None

    def must_live(self) -> bool:
        """True; if it has ended, an error with the end of its log."""
        if not self.is_alive:
            said = self.log.read_text(errors="replace")
            raise RuntimeError(f"{self.name} ended with {self.process.returncode}:\n{said[-3_000:]}")
        return True

    def arm(self, fault: str) -> None:
        """From now on it dies where the fault says."""
        self._orders.write_text(fault)
        self.process.send_signal(signal.SIGUSR1)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def wait_for_death(self) -> None:
        """Until it has been killed, by its own fault."""
        wait_until(lambda: not self.is_alive)
        if self.process.returncode != -signal.SIGKILL:
            raise RuntimeError(f"{self.name} ended with {self.process.returncode} instead of being killed; {self.log}")

    def end(self) -> None:
        """A clean end."""
        self.process.terminate()
        if self.process.wait(timeout=HANG_S) != 0:
            raise RuntimeError(f"{self.name} ended with {self.process.returncode}; see {self.log}")


class Fleet:
    """Starts scorers of one stream; all are members of its group, static ones by name.

    Args:
        within: a command that runs each of them.
    """

    def __init__(
        self,
        bootstrap: str,
        stream: Stream,
        folder: Path,
        *,
        order_wait_ms: int,
        client: str,
        within: Sequence[str] = (),
    ) -> None:
        self._folder, self.lives, self._n = folder, dict[str, Life](), 0
        self._command = [
            *within, sys.executable, "-m", "tests.pipelines.live.live_scorer",
            "--bootstrap", bootstrap, "--stream", stream.name, "--snapshots", str(folder / "snapshots"),
            "--order-wait-ms", str(order_wait_ms),
            "--session-s", str(SESSION_S), "--client", client,
        ]  # fmt: skip

    def start(self, name: str, fault: str = "") -> Life:
        """Start a replica, which dies where the fault says."""
        self._n += 1
        log, orders = self._folder / f"life-{self._n:03d}.log", self._folder / f"fault-{name}"
        command = [*self._command, "--instance", name, "--fault", fault, "--orders", str(orders)]
        with open(log, "wb") as out:
            process = subprocess.Popen(
                command, stdout=out, stderr=subprocess.STDOUT, env=os.environ | {"OMP_NUM_THREADS": "1"}
            )
        self.lives[name] = Life(name, process, log, orders)
        return self.lives[name]

    def count_in_logs(self, words: str) -> int:
        return sum(path.read_text(errors="replace").count(words) for path in self._folder.glob("life-*.log"))

    def must_live(self) -> bool:
        """True; if a scorer has ended, an error with the end of its log."""
        return all(life.must_live() for life in self.lives.values())

    def kill_all(self) -> None:
        for life in self.lives.values():
            life.kill()
