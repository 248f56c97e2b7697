"""The systems: with which clients and forms each runs, and which Python runs it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from tests.bench.stream.unmask import CLIENTS, FORMS
from tests.bench.tables import ROOT, BenchError

REQUIREMENTS = Path(__file__).with_name("requirements-peers.txt")
PEERS_PYTHON = ROOT / "build" / "quix-venv"
INSTALL_S = 1_200
_BOTH = ("kafka-python", "confluent")


class System(NamedTuple):
    """A system. `apart`: it runs in an environment of its own. `streams`: those it can score."""

    clients: tuple[str, ...]
    forms: tuple[str, ...] = ("events",)
    streams: tuple[str, ...] = ("key",)
    apart: bool = False


SYSTEMS = {
    "bare": System(_BOTH),
    "unmask": System(CLIENTS, FORMS, ("key", "merged")),
    "xgboost": System(_BOTH, ("events", "packed"), ("key", "merged")),
    "river": System(("confluent",), apart=True),
    "quix": System(("confluent",), apart=True),
    "quix-xgboost": System(("confluent",), apart=True),
}


class Run(NamedTuple):
    """One run of a system."""

    system: str
    client: str
    form: str
    stream: str

    def __str__(self) -> str:
        return f"{self.system}, {self.client}, {self.form}, {self.stream}"


def runs_of(
    systems: Sequence[str],
    clients: Sequence[str] = _BOTH,
    forms: Sequence[str] = ("events", "packed"),
    streams: Sequence[str] = ("key", "merged"),
) -> list[Run]:
    """The runs that the options leave.

    >>> [str(run) for run in runs_of(["bare", "river"])]
    ['bare, kafka-python, events, key', 'bare, confluent, events, key', 'river, confluent, events, key']

    Raises:
        BenchError: nothing is left.
    """
    if unknown := [name for name in systems if name not in SYSTEMS]:
        raise BenchError(f"--systems {', '.join(unknown)}: no such system; choose from {', '.join(SYSTEMS)}")
    runs = [
        Run(name, client, form, stream)
        for stream in streams
        for name in systems
        for client in SYSTEMS[name].clients
        for form in SYSTEMS[name].forms
        if client in clients and form in forms and stream in SYSTEMS[name].streams
        if not (name == "xgboost" and stream == "merged" and form == "packed")
    ]
    if not runs:
        raise BenchError("no run is left; see --help for the values of --systems, --clients, --forms and --streams")
    return runs


def python_for(system: str, say: Callable[[str], None]) -> Path:
    """The Python that runs a system; the environment of the peers is made at the first call.

    Raises:
        BenchError: it cannot be made.
    """
    if not SYSTEMS[system].apart:
        return Path(sys.executable)
    done, python = PEERS_PYTHON / "installed.txt", PEERS_PYTHON / "bin" / "python"
    wanted = REQUIREMENTS.read_text()
    if not done.exists() or done.read_text() != wanted:
        say(f"installing {REQUIREMENTS.name} into {PEERS_PYTHON}")
        for words in (
            [sys.executable, "-m", "venv", str(PEERS_PYTHON)],
            [str(python), "-m", "pip", "install", "--quiet", "-r", str(REQUIREMENTS)],
        ):
            try:
                subprocess.run(words, capture_output=True, text=True, timeout=INSTALL_S, check=True)
            except (subprocess.CalledProcessError, subprocess.TimeoutExpired, OSError) as error:
                last = (getattr(error, "stderr", "") or str(error)).strip().splitlines()[-1:]
                raise BenchError(f"the environment of {system} cannot be made: {' '.join(last)[:300]}") from error
        done.write_text(wanted)
    return python
