"""A local server as a child process: started once, found again by any command, stopped by its own pid only.

Each server leaves a state file `<name>.json` (pid, the process's creation time, address) and a log
`<name>.log` in its folder, so that `start`, `status` and `stop` may be three different commands.
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

# A busy machine can hold up a start for minutes: only a process that stands still is given up.
SILENCE_S = 300.0

# Variables that a program needs to run at all. None of them is a secret: a server must not get the login of Kafka, of a
# registry or of a cloud from whoever started it.
INHERITED = frozenset(
    (
        *("PATH", "HOME", "USER", "LOGNAME", "SHELL", "TMPDIR", "LANG", "LANGUAGE", "TZ", "VIRTUAL_ENV"),
        *("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "JAVA_HOME", "JAVA_TOOL_OPTIONS", "SSL_CERT_FILE", "SSL_CERT_DIR"),
        *("PYTHONPATH", "PYTHONHOME", "PYTHONUNBUFFERED", "PYTHONDONTWRITEBYTECODE", "PYTHONHASHSEED"),
        *("XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_RUNTIME_DIR"),
        *("OMP_NUM_THREADS", "NUMBA_CACHE_DIR", "DO_NOT_TRACK"),
    )
)

# Who starts a child must collect its exit code, also where `find` made the handle that stops it.
_children: dict[int, subprocess.Popen[bytes]] = {}


class ServerError(UnmaskError):
    """A local server did not start, or ended."""


@dataclass
class Process:
    """A running (or once running) local server.

    Args:
        name: what it is, and the stem of its files: "kafka".
        pid: its process id.
        created: its creation time in seconds since 1970; a pid alone may have been given to a stranger since.
        address: where it listens: "127.0.0.1:9092".
        folder: where its state file and log are.
        log_start: how many bytes the log held when it was started.
    """

    name: str
    pid: int
    created: float
    address: str
    folder: Path
    log_start: int = field(default=0, repr=False, compare=False)

    @property
    def log(self) -> Path:
        """Everything the server has printed, over all its starts."""
        return self.folder / f"{self.name}.log"

    @property
    def url(self) -> str:
        """The address for a browser."""
        return f"http://{self.address}"

    @property
    def is_running(self) -> bool:
        """Whether the very process that was started still runs."""
        return self._living() is not None

    def wait_until_up(self, is_up: Callable[[], bool], *, silence_s: float = SILENCE_S) -> None:
        """Wait until `is_up`, for as long as the process lives and prints; if it fails, the process is stopped.

        Args:
            silence_s: give up when nothing was added to the log for this long.

        Raises:
            ServerError: it ended, or it was silent for too long; the end of its log is in the message.
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
        """What it has printed since this start."""
        with self.log.open("rb") as log:
            log.seek(self.log_start)
            return log.read().decode(errors="replace")

    def log_end(self) -> str:
        """The last lines that it has printed, with the path of its log, for an error message."""
        tail = "\n".join(self.printed().splitlines()[-15:])
        return f"The end of its log ({self.log}):\n{tail}"

    def stop(self, *, patience_s: float = 8.0) -> None:
        """Ask the process and its children to end; after `patience_s` kill those that have not."""
        stop_all([self], patience_s=patience_s)

    def kill(self) -> None:
        """End the process and its children at once, as a crash would; the state file stays behind."""
        self._reap()

    def _what_went_wrong(self, what: str) -> str:
        return f"{self.name} {what}. {self.log_end()}"

    def _family(self) -> list[psutil.Process]:
        process = self._living()
        return [] if process is None else [process, *process.children(recursive=True)]

    def _reap(self) -> None:
        """Kill what still lives of the family, and collect the exit code."""
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
            # Creation times are read back in clock ticks, so they agree only to within one.
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
    """Start `command` in its own session; `Process.wait_until_up` waits until it is ready.

    Args:
        name: stem of the state file and the log.
        command: program and arguments.
        folder: where the state file and the log go.
        address: "host:port" that it listens on.
        env: variables beside those of `INHERITED`; nothing else of this process's environment is passed on.
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
            start_new_session=True,  # Ctrl-C reaches only us: we stop it in our own order
        )
    _children[child.pid] = child
    created = psutil.Process(child.pid).create_time()
    process = Process(name, child.pid, created, address, folder, printed_before)
    _write_state(process)
    return process


def inherited(*prefixes: str) -> dict[str, str]:
    """What a child may have of this process's variables: those of `INHERITED`, and those that start with a prefix."""
    wanted = ("LC_", *prefixes)
    return {name: value for name, value in os.environ.items() if name in INHERITED or name.startswith(wanted)}


def stop_all(started: Sequence[Process], *, patience_s: float = 8.0) -> None:
    """Stop several at once: all are asked first, then waited for together, then killed."""
    families = [member for process in started for member in process._family()]
    for member in families:
        _signal(member.terminate)
    _, stubborn = psutil.wait_procs(families, timeout=patience_s)
    for member in stubborn:  # also those whose parent has ended meanwhile
        _signal(member.kill)
    for process in started:
        process._reap()
        _state_file(process.folder, process.name).unlink(missing_ok=True)


def find(name: str, folder: Path) -> Process | None:
    """The server that a former `start` left running in `folder`, or None."""
    try:
        state = json.loads(_state_file(folder, name).read_text())
        process = Process(name, int(state["pid"]), float(state["created"]), str(state["address"]), folder)
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None  # never started, or its file was cut short by a crash
    return process if process.is_running else None


def free_port() -> int:
    """A TCP port of the loopback that nobody listens on just now."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        port: int = probe.getsockname()[1]
    return port


def choose_port(name: str, folder: Path) -> int:
    """The port of the last start if it is still free, so that clients find it again; else a free one."""
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
    """Whether somebody listens on this port of the loopback."""
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
