"""Local servers as child processes that later commands can find and stop.

Each server has a state file `<name>.json` (pid, creation time of the process, address) and a log `<name>.log` in its
folder, so that `start`, `status` and `stop` can be separate commands. A process is only stopped by its own pid.
"""

import contextlib
import json
import os
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from pipelines.errors import UnmaskError

LOOPBACK = "127.0.0.1"

# On a busy machine a start can take minutes. Only a process without any output for this long is stopped.
SILENCE_S = 300.0

# Variables that any program needs. Others are not inherited, because they may contain credentials of Kafka, a registry
# or a cloud.
INHERITED = frozenset(
    (
        *("PATH", "HOME", "USER", "LOGNAME", "SHELL", "TMPDIR", "LANG", "LANGUAGE", "TZ", "VIRTUAL_ENV"),
        *("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "JAVA_HOME", "JAVA_TOOL_OPTIONS", "SSL_CERT_FILE", "SSL_CERT_DIR"),
        *("PYTHONPATH", "PYTHONHOME", "PYTHONUNBUFFERED", "PYTHONDONTWRITEBYTECODE", "PYTHONHASHSEED"),
        *("XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_RUNTIME_DIR"),
        *("OMP_NUM_THREADS", "NUMBA_CACHE_DIR", "DO_NOT_TRACK"),
    )
)

# Handles of children of this process, whose exit codes must be collected, also if `find` made another handle.
_children: dict[int, subprocess.Popen[bytes]] = {}


class ServerError(UnmaskError):
    """A local server did not start, or has ended."""


@dataclass
class Process:
    """A local server that is or was running.

    Args:
        name: name of the server and of its files, such as "kafka".
        pid: process id.
        created: creation time of the process in seconds since 1970, because the system may reuse a pid.
        address: listening address, such as "127.0.0.1:9092".
        folder: folder of the state file and the log.
        log_start: size of the log in bytes at the start.
    """

    name: str
    pid: int
    created: float
    address: str
    folder: Path
    log_start: int = field(default=0, repr=False, compare=False)

    @property
    def log(self) -> Path:
        """The log file, with the output of all starts."""
        return self.folder / f"{self.name}.log"

    @property
    def url(self) -> str:
        """The URL for a browser."""
        return f"http://{self.address}"

    @property
    def is_running(self) -> bool:
        """Whether the process that was started is still running."""
        return self._living() is not None

    def wait_until_up(self, is_up: Callable[[], bool], *, silence_s: float = SILENCE_S) -> None:
        """Wait until `is_up` is true, as long as the process runs and prints. On failure, stop the process.

        Args:
            silence_s: maximum time without log output.

        Raises:
            ServerError: the process ended, or printed nothing for too long. The message contains the end of its log.
        """
        size, printed_s = -1, time.monotonic()
        try:
            while not is_up():
                if not self.is_running:
                    raise ServerError(self._what_went_wrong("ended instead of starting"))
                now_s, now_size = time.monotonic(), self.log.stat().st_size
                if now_size != size:
                    size, printed_s = now_size, now_s
                if now_s - printed_s > silence_s:
                    raise ServerError(self._what_went_wrong(f"is not up and printed nothing for {silence_s:.0f} s"))
                time.sleep(0.1)
        except BaseException:
            self.stop()
            raise

    def printed(self) -> str:
        """The output since this start."""
        with self.log.open("rb") as log:
            log.seek(self.log_start)
            return log.read().decode(errors="replace")

    def log_end(self) -> str:
        """The path and the last lines of the log, for an error message."""
        tail = "\n".join(self.printed().splitlines()[-15:])
        return f"The end of its log ({self.log}):\n{tail}"

    def stop(self, *, patience_s: float = 8.0) -> None:
        """Terminate the process and its children. Kill those still running after `patience_s`."""
        stop_all([self], patience_s=patience_s)

    def kill(self) -> None:
        """Kill the process and its children, as in a crash. The state file stays."""
        self._reap()

    def _what_went_wrong(self, what: str) -> str:
        return f"{self.name} {what}. {self.log_end()}"

    def _family(self) -> list[psutil.Process]:
        process = self._living()
        return [] if process is None else [process, *process.children(recursive=True)]

    def _reap(self) -> None:
        """Kill all remaining processes and collect the exit code."""
        family = self._family()
        for member in family:
            _signal(member.kill)
        psutil.wait_procs(family, timeout=10.0)
        child = _children.pop(self.pid, None)
        if child is not None:
            child.wait()

    def _living(self) -> psutil.Process | None:
        try:
            process = psutil.Process(self.pid)
            # Creation times are measured in clock ticks, so they may differ by one.
            is_ours = abs(process.create_time() - self.created) < 1.0
            return process if is_ours and process.status() != psutil.STATUS_ZOMBIE else None
        except psutil.NoSuchProcess:
            return None


def launch(
    name: str,
    command: Sequence[str],
    *,
    folder: Path,
    address: str,
    env: Mapping[str, str] | None = None,
) -> Process:
    """Start `command` in its own session. Use `Process.wait_until_up` to wait until it is ready.

    Args:
        name: name of the state file and the log.
        command: program and arguments.
        folder: folder of the state file and the log.
        address: "host:port" that it listens on.
        env: variables in addition to `INHERITED`. No other variables of this process are passed on.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{name}.log").open("ab") as out:
        printed_before = out.tell()
        child = subprocess.Popen(
            list(command),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            env=inherited() | dict(env or {}),
            start_new_session=True,  # Ctrl-C reaches only this process, which stops the servers in order
        )
    _children[child.pid] = child
    created = psutil.Process(child.pid).create_time()
    process = Process(name, child.pid, created, address, folder, printed_before)
    _write_state(process)
    return process


def inherited(*prefixes: str) -> dict[str, str]:
    """Variables that a child inherits: those in `INHERITED`, and those with a prefix."""
    wanted = ("LC_", *prefixes)
    return {name: value for name, value in os.environ.items() if name in INHERITED or name.startswith(wanted)}


def stop_all(started: Sequence[Process], *, patience_s: float = 8.0) -> None:
    """Stop several processes: terminate all, wait for them together, then kill the rest."""
    families = [member for process in started for member in process._family()]
    for member in families:
        _signal(member.terminate)
    _, stubborn = psutil.wait_procs(families, timeout=patience_s)
    for member in stubborn:  # including those whose parent has ended
        _signal(member.kill)
    for process in started:
        process._reap()
        _state_file(process.folder, process.name).unlink(missing_ok=True)


def find(name: str, folder: Path) -> Process | None:
    """The running server that an earlier `start` left in `folder`, or None."""
    try:
        state = json.loads(_state_file(folder, name).read_text())
        process = Process(name, int(state["pid"]), float(state["created"]), str(state["address"]), folder)
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None  # never started, or its file is incomplete after a crash
    return process if process.is_running else None


def free_port() -> int:
    """A TCP port of the loopback interface that is not in use."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        port: int = probe.getsockname()[1]
    return port


def choose_port(name: str, folder: Path) -> int:
    """The port of the last start if it is free, so that the address stays the same; otherwise a free port."""
    remembered = folder / f"{name}.port"
    last = None
    with contextlib.suppress(FileNotFoundError, ValueError):
        last = int(remembered.read_text())
    if last is not None and not accepts(last):
        return last
    port = free_port()
    folder.mkdir(parents=True, exist_ok=True)
    remembered.write_text(f"{port}\n")
    return port


def accepts(port: int) -> bool:
    """Whether a server listens on this port of the loopback interface."""
    try:
        with socket.create_connection((LOOPBACK, port), timeout=1.0):
            return True
    except OSError:
        return False


def _signal(send: Callable[[], None]) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        send()


def _state_file(folder: Path, name: str) -> Path:
    return folder / f"{name}.json"


def _write_state(process: Process) -> None:
    target = _state_file(process.folder, process.name)
    draft = target.with_suffix(".json.new")
    state = {"pid": process.pid, "created": process.created, "address": process.address}
    draft.write_text(json.dumps(state) + "\n")
    draft.replace(target)
