"""Nothing is compiled while a scorer runs: the loop would stand still for a second."""

import importlib
import pkgutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from numba.core.registry import CPUDispatcher

from pipelines import features
from pipelines.features import entities
from pipelines.features.ahead import compile_ahead
from pipelines.features.pieces import joined
from pipelines.features.snapshot import Snapshot, SnapshotStore
from pipelines.features.state import Base, State
from tests.pipelines.features.test_state import block_of, event, label
from tests.pipelines.live.simulated import START_MS, STREAM


def kernels() -> Iterator[tuple[str, CPUDispatcher]]:
    for module in pkgutil.iter_modules(features.__path__):
        for name, found in vars(importlib.import_module(f"{features.__name__}.{module.name}")).items():
            if isinstance(found, CPUDispatcher):
                yield f"{module.name}.{name}", found


def compiled() -> dict[str, list[object]]:
    return {name: list(kernel.signatures) for name, kernel in kernels()}


def fold(state: State, first: int, end: int) -> None:
    """Events, one of them for itself, and a label for every tenth."""
    state.fold(block_of(event(first, first, first)))
    items = [event(n, n, n) for n in range(first + 1, end)]
    reports = [label(n, n, n, 1, event_ms=n) for n in range(first + 1, end, 10)]
    state.fold(block_of(*sorted([*items, *reports])))


def copied(state: State, since: Base | None, more: int) -> tuple[Snapshot, Base]:
    """A snapshot, during which `more` more events are folded."""
    copy = state.copy(since)
    fold(state, more, more + 300)
    while not copy.is_whole:
        copy.step(2)
    return Snapshot(copy.meta, joined(copy.parts())), copy.as_base


def live_a_while(folder: Path) -> None:
    """What happens to a state in the life of a scorer."""
    state, store = State(STREAM, 2, id_key=b""), SnapshotStore(folder)
    fold(state, 0, 6_000)
    whole, base = copied(state, None, 6_000)
    changes, _ = copied(state, base, 6_300)
    state.windows.sweep(START_MS + 10**9)
    fold(state, 6_600, 6_700)
    State.restore(STREAM, Snapshot(changes.meta, changes.arrays, whole))
    store.write(whole)
    _, read = next(store.newest_first())
    fold(State.restore(STREAM, read), 6_000, 6_010)


def compiled_later() -> list[str]:
    compile_ahead()
    before = compiled()
    entities._SMALL = 0  # gaps are closed whatever their size
    with tempfile.TemporaryDirectory() as folder:
        live_a_while(Path(folder))
    assert all(before[f"packing.{name}"] for name in ("sweep", "move_some_up", "merge"))
    return [name for name, signatures in compiled().items() if len(signatures) > len(before[name])]


def test_all_kernels_of_a_running_scorer_are_compiled_at_its_start() -> None:
    code = f"from {__name__} import compiled_later; print(compiled_later())"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert ran.stdout == "[]\n", ran.stdout + ran.stderr
