import http.server
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from flows.servers import Servers
from models.plots import training_curves
from models.registry import RegistryError, Resolved, open_run, register, resolve, set_alias, version_of

DIGEST = "0123456789abcdef" * 4
NOWHERE = "http://127.0.0.1:9"


@pytest.fixture
def model_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "manifest.json").write_text('{"files": {}}')
    (folder / "model.safetensors").write_bytes(np.arange(8, dtype=np.float32).tobytes())
    return folder


@pytest.fixture
def silent_server() -> Iterator[str]:
    """Accepts connections and never answers."""
    release = threading.Event()

    class Silent(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            release.wait(30.0)

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Silent)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    release.set()
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_model_goes_through_the_registry_unchanged_and_stays_when_mlflow_goes(
    servers: Servers, model_folder: Path, tmp_path: Path
):
    uri, cache = servers.mlflow_uri, tmp_path / "cache"
    with open_run("registry/finetune", tracking_uri=uri, run_name="first", tags={"lake.version": "7"}) as run:
        run.log_params({f"param_{i}": i for i in range(130)})
        for step in range(300):
            run.log_metrics({"loss": 1.0 / (step + 1), "ap": step / 300, "lr": 1e-3, "grad": 0.5}, step=step)
        run.log_figure("loss", training_curves({"train": [(0, 1.0), (1, 0.5)]}))
        run.log_table("budget", {"rate": [0.001, 0.005], "precision": [0.9, 0.6]})
        version = register(
            "registry-scorer", run, model_folder, digest=DIGEST, tags={"ap": "0.77"}, description="night"
        )
    assert resolve_fails_without_alias(uri, cache)
    set_alias("registry-scorer", "champion", version, tracking_uri=uri)
    found = resolve("registry-scorer", "champion", tracking_uri=uri, cache=cache)
    assert found == Resolved(version, DIGEST, cache / DIGEST, registry_answered=True)
    assert {f.name: f.read_bytes() for f in found.folder.iterdir()} == {
        f.name: f.read_bytes() for f in model_folder.iterdir()
    }
    assert version_of("registry-scorer", "champion", tracking_uri=uri) == (
        version,
        {"ap": "0.77", "digest": DIGEST},
    )
    last_good = resolve("registry-scorer", "champion", tracking_uri=NOWHERE, cache=cache)
    assert last_good == Resolved(version, DIGEST, cache / DIGEST, registry_answered=False)
    _check_the_run(uri, run.run_id)


def resolve_fails_without_alias(uri: str, cache: Path) -> bool:
    with pytest.raises(RegistryError, match=r"must have a model 'registry-scorer' with the alias 'champion'"):
        resolve("registry-scorer", "champion", tracking_uri=uri, cache=cache)
    return True


def _check_the_run(uri: str, run_id: str) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=uri)
    run = client.get_run(run_id)
    assert run.info.status == "FINISHED"
    assert (run.data.params["param_129"], run.data.tags["lake.version"]) == ("129", "7")
    assert [point.step for point in client.get_metric_history(run_id, "ap")] == list(range(300))
    assert {item.path for item in client.list_artifacts(run_id)} == {"plots", "budget.json", "model"}


def test_a_run_that_raises_is_marked_failed_and_keeps_its_metrics(servers: Servers):
    from mlflow import MlflowClient

    with (
        pytest.raises(ZeroDivisionError),
        open_run("registry/pretrain", tracking_uri=servers.mlflow_uri, run_name="bad") as run,
    ):
        run.log_metrics({"loss": 2.0}, step=1)
        raise ZeroDivisionError
    found = MlflowClient(tracking_uri=servers.mlflow_uri).get_run(run.run_id)
    assert (found.info.status, found.data.metrics) == ("FAILED", {"loss": 2.0})


def test_an_unknown_model_says_what_to_do(servers: Servers, tmp_path: Path):
    with pytest.raises(RegistryError, match="`unmask promote`"):
        resolve("nobody-scorer", "champion", tracking_uri=servers.mlflow_uri, cache=tmp_path)


def test_without_mlflow_and_without_a_copy_the_error_names_both(tmp_path: Path):
    with pytest.raises(RegistryError, match="no former copy"):
        resolve("registry-scorer", "champion", tracking_uri=NOWHERE, cache=tmp_path)


def test_a_server_that_never_answers_costs_at_most_five_seconds(silent_server: str, tmp_path: Path):
    (tmp_path / "payments-scorer.champion.json").write_text(f'{{"version": 3, "digest": "{DIGEST}"}}')
    began = time.monotonic()
    found = resolve("payments-scorer", "champion", tracking_uri=silent_server, cache=tmp_path)
    assert (found.version, found.registry_answered) == (3, False)
    assert time.monotonic() - began < 5.0
