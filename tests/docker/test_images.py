import re
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions, requires
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from typer.testing import CliRunner

from flows.cli.root import app

ROOT = Path(__file__).parents[2]
COMPOSE = ROOT / "docker" / "compose.yaml"


def test_compose_accepts_its_file():
    compose = ["docker", "compose", "-f", str(COMPOSE), "config", "-q"]
    if shutil.which("docker") is None or subprocess.run([*compose[:2], "version"], capture_output=True).returncode:
        pytest.skip("needs the client of docker compose")
    done = subprocess.run(compose, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_compose_names_only_files_and_services_that_exist():
    services = yaml.safe_load(COMPOSE.read_text())["services"]
    for service in services.values():
        mounts = [mount for mount in service.get("volumes", []) if ":-" in mount]
        assert all((COMPOSE.parent / re.findall(r":-(.*?)}", mount)[0]).is_file() for mount in mounts)
        if "build" in service:
            assert (COMPOSE.parent / service["build"]["context"] / service["build"]["dockerfile"]).is_file()
        assert set(service.get("depends_on", {})) <= set(services)


def test_the_commands_of_unmask_in_compose_exist():
    commands = [service.get("command", []) for service in yaml.safe_load(COMPOSE.read_text())["services"].values()]
    ours = [command[1:] for command in commands if command[:1] == ["unmask"]]
    assert ours
    for words in ours:
        assert CliRunner().invoke(app, [*words, "--help"]).exit_code == 0


def test_every_port_of_compose_is_bound_to_the_loopback():
    services = yaml.safe_load(COMPOSE.read_text())["services"]
    ports = [port for service in services.values() for port in service.get("ports", [])]
    assert ports
    assert [port for port in ports if not port.startswith("127.0.0.1:")] == []


def test_the_scorers_memory_can_be_set_and_holds_a_stream_of_180_000_entities():
    limit = yaml.safe_load(COMPOSE.read_text())["services"]["scorer"]["mem_limit"]
    default = re.fullmatch(r"\$\{UNMASK_SCORER_MEMORY:-(\d+)g\}", limit)
    assert default
    assert int(default[1]) * 1e9 > 400e6 + 2 * 4096 * 180_000 + 48 * 10_000_000 + 300e6


@pytest.mark.parametrize("dockerfile", ["Dockerfile.flows", "Dockerfile.scorer"])
def test_an_image_copies_what_is_there_and_does_not_run_as_root(dockerfile: str):
    lines = (ROOT / "docker" / dockerfile).read_text().splitlines()
    copied = [word for line in lines if re.match(r"COPY (?!--)", line) for word in line.split()[1:-1]]
    assert [name for name in copied if not (ROOT / name).exists()] == []
    assert "USER 10001" in lines
    assert any("install -d -m 700 -o unmask /var/lib/unmask" in line for line in lines)


@pytest.mark.parametrize("lock", ["docker/scorer.lock", "docker/flows.lock"])
def test_the_packages_of_an_image_are_those_of_the_main_lock(lock: str):
    assert _pins(lock) <= _pins("requirements.lock")


@pytest.mark.parametrize(
    ("lock", "extras"), [("docker/scorer.lock", ["serve"]), ("docker/flows.lock", ["train", "flows"])]
)
def test_an_image_has_all_that_its_extras_need(lock: str, extras: list[str]):
    assert _needed(extras) - _names(lock) - {"torch"} == set()


def test_the_scorers_image_has_no_training_no_scheduler_and_no_server():
    assert _names("docker/scorer.lock") & {
        "torch", "scikit-learn", "onnx", "matplotlib", "scipy", "pandas", "prefect", "mlflow", "flask", "sqlalchemy",
        "alembic", "confluent-kafka", "jgo", "pytest",
    } == set()  # fmt: skip


def test_the_scorer_imports_nothing_that_its_image_lacks():
    # numba takes scipy only where it is installed; here it is, in the image it is not.
    without_scipy = "import sys; sys.modules['scipy'] = None; import flows.cli, flows.serve.service; "
    listed = without_scipy + "print(*{name.partition('.')[0] for name in sys.modules if name != 'scipy'})"
    ran = subprocess.run([sys.executable, "-c", listed], capture_output=True, text=True, cwd=ROOT, check=True)
    owners = packages_distributions()
    used = {_plain(owner) for name in ran.stdout.split() for owner in owners.get(name, ())}
    assert used - _names("docker/scorer.lock") - {"unmask", "setuptools"} == set()


def _needed(extras: list[str]) -> set[str]:
    """The packages that Unmask with these extras needs here, by what the installed ones say of themselves."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    waiting = [Requirement(text) for text in project["dependencies"]]
    waiting += [Requirement(text) for extra in extras for text in project["optional-dependencies"][extra]]
    seen: set[tuple[str, str]] = set()
    while waiting:
        wanted = waiting.pop()
        for extra in ("", *wanted.extras):
            if (key := (_plain(wanted.name), extra)) in seen:
                continue
            seen.add(key)
            if key[0] == "unmask":
                texts = project["optional-dependencies"].get(extra, [])
            elif key[0] == "torch":
                texts = []  # locked apart
            else:
                texts = requires(wanted.name) or []
            needs = map(Requirement, texts)
            waiting += [each for each in needs if each.marker is None or each.marker.evaluate({"extra": extra})]
    return {name for name, _ in seen} - {"unmask"}


def _plain(name: str) -> str:
    return name.lower().replace("_", "-").replace(".", "-")


def _names(lock: str) -> set[str]:
    return {_plain(pin.partition("==")[0]) for pin in _pins(lock)}


def _pins(lock: str) -> set[str]:
    return {line.split(" ")[0] for line in (ROOT / lock).read_text().splitlines() if re.match(r"[a-z]", line)}
