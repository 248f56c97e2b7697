"""Versions of what is installed, extras that are missing, the disk and the processors."""

import importlib.util
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from flows.doctor.finding import Finding, error, ok, warning
from flows.extras import MODULES
from flows.settings import Settings

SECTION = "installed"
LIBRARIES = ("torch", "onnxruntime", "kafka-python", "confluent-kafka", "mlflow", "mlflow-skinny", "prefect", "numba")
FREE_BYTES = 2 << 30  # snapshots and the lake's new files need about this much
# What each extra is for, where its lack is no mistake.
NEEDED_FOR = {
    "serve": "scoring",
    "train": "training",
    "flows": "the flows under Prefect",
    "kafka": "a Kafka of `unmask kafka start`",
    "fast": "KAFKA_CLIENT=confluent-kafka",
    "bucket": "snapshots in an object store",
}


def look(settings: Settings) -> Iterator[Finding]:
    """Versions, extras, compiled kernels, home, processors."""
    yield ok(SECTION, "versions", f"unmask {version('unmask')}, Python {platform.python_version()}, {_libraries()}")
    missing = {name for name, modules in MODULES.items() if any(importlib.util.find_spec(m) is None for m in modules)}
    for extra, use in NEEDED_FOR.items():
        if extra in missing:
            yield warning(SECTION, f"extra {extra}", f"not installed; needed for {use}", _pip(extra))
    if settings.kafka_client == "confluent-kafka" and "fast" in missing:
        yield error(SECTION, "KAFKA_CLIENT", "confluent-kafka is not installed", _pip("fast"))
    if not missing:
        yield ok(SECTION, "extras", "all installed")
    yield _kernels()
    yield from _home(settings.home)
    yield _processors()


def _pip(extra: str) -> str:
    return f"pip install 'unmask[{extra}]'"


def _libraries() -> str:
    found = []
    for name in LIBRARIES:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return ", ".join(found)


def _kernels() -> Finding:
    """Whether numba can keep the compiled kernels; otherwise each start compiles them for half a minute."""
    from pipelines.features import compiling

    place = Path(os.environ.get("NUMBA_CACHE_DIR") or Path(compiling.__file__).parent)
    if os.access(_existing(place), os.W_OK):
        return ok(SECTION, "compiled kernels", f"can be kept in {place}")
    return warning(
        SECTION,
        "compiled kernels",
        f"{place} cannot be written; each start compiles them",
        "export NUMBA_CACHE_DIR=FOLDER",
    )


def _home(home: Path) -> Iterator[Finding]:
    problem = unwritable(home)
    if problem:
        yield error(SECTION, "UNMASK_HOME", problem, "export UNMASK_HOME=FOLDER that this user may write")
        return
    free = shutil.disk_usage(home).free
    if free < FREE_BYTES:
        yield error(SECTION, "UNMASK_HOME", f"{free / 1e9:.1f} GB are free on the disk of {home}", "free some space")
    elif (mode := home.stat().st_mode) & 0o077:
        yield warning(SECTION, "UNMASK_HOME", f"others can read {home} ({mode & 0o777:o})", f"chmod 700 {home}")
    else:
        yield ok(SECTION, "UNMASK_HOME", f"{home}, {free / 1e9:,.0f} GB free")


def unwritable(folder: Path) -> str:
    """Why no file can be written, read and deleted in a folder or where it would be created; empty if one can."""
    probe = _existing(folder) / f".doctor-{os.getpid()}"
    try:
        probe.write_bytes(b"probe")
        same = probe.read_bytes() == b"probe"
        probe.unlink()
    except OSError as failed:
        return f"{folder} cannot be written ({failed.strerror})"
    return "" if same else f"{folder} does not keep what is written"


def _existing(path: Path) -> Path:
    """The path, or the nearest parent that exists."""
    return next(p for p in (path.absolute(), *path.absolute().parents) if p.exists())


def _processors() -> Finding:
    """GPU or CPU, without importing torch, which takes seconds."""
    n = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count()
    gpu = _gpu()
    try:
        is_cpu_build = "+cpu" in version("torch")
    except PackageNotFoundError:
        return ok(SECTION, "processors", f"{n} cores{f', {gpu}' if gpu else ''}; torch is not installed")
    if gpu and is_cpu_build:
        fix = "pip install torch, in its build for CUDA"
        return warning(SECTION, "processors", f"{gpu} is not used: this torch is built for CPU only", fix)
    return ok(SECTION, "processors", f"{n} cores, {gpu or 'no GPU: training uses the CPU'}")


def _gpu() -> str:
    try:
        ran = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return ran.stdout.partition(" (")[0].strip() if ran.returncode == 0 else ""
