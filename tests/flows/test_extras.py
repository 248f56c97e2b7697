"""What is installed by choice: a command without it names the extra to install."""

import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from flows.extras import MODULES, MissingExtraError, require

ROOT = Path(__file__).parents[2]
WITHOUT = """
import sys
sys.modules.update(dict.fromkeys({modules!r}))
sys.argv[1:] = {words!r}
import flows.cli
flows.cli.main()
"""


def test_every_package_of_an_extra_that_a_command_needs_is_named() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    owners = packages_distributions()
    for extra, modules in MODULES.items():
        packages = {Requirement(text).name for text in extras[extra]} - {"unmask"}
        installed = {owner.lower().replace("_", "-") for module in modules for owner in owners.get(module, ())}
        lacking = {name for name in packages if name not in installed}
        may_lack = {"mlflow"} if extra == "flows" else {"confluent-kafka"}  # "serve" names mlflow
        assert lacking <= may_lack, extra


@pytest.fixture
def answering_server(tmp_path: Path) -> Iterator[str]:
    """URL of a server that says it is well, so that a flow goes on to its imports."""
    (tmp_path / "www" / "api").mkdir(parents=True)
    (tmp_path / "www" / "api" / "health").touch()
    handler = partial(SimpleHTTPRequestHandler, directory=str(tmp_path / "www"))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/api"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("words", "modules", "extra"),
    [
        (["score", "--stream", "payments", "--from", "latest"], ["onnxruntime"], "serve"),
        (["demo"], ["torch"], "train"),
        (["demo"], ["sklearn"], "train"),
        (["ui", "start"], ["prefect"], "flows"),
        (["finetune", "--stream", "payments"], ["torch"], "train"),
        (["promote", "--stream", "payments"], ["prefect"], "flows"),
    ],
)
def test_a_command_without_its_extra_says_which_to_install(
    words: list[str], modules: list[str], extra: str, tmp_path: Path, answering_server: str
) -> None:
    program = WITHOUT.format(modules=modules, words=words)
    env = {"UNMASK_HOME": str(tmp_path / "home"), "PATH": "/usr/bin:/bin", "PREFECT_API_URL": answering_server}
    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120, env=env, cwd=ROOT, check=False
    )
    assert ran.returncode == 2, ran.stderr
    told = ran.stderr.strip()
    assert told == f"error: {modules[0]} is not installed; run `pip install 'unmask[{extra}]'`"


def test_a_module_of_no_extra_is_our_own_defect() -> None:
    assert MissingExtraError.of("pipelines.nothing") is None
    with pytest.raises(KeyError):
        require("nothing")
