import time
from pathlib import Path

import numpy as np
import pytest

from flows.local.servers import Servers
from models.plots import training_curves
from models.ship.registry import (
    RegistryError,
    Resolved,
    fetch,
    note,
    open_run,
    register,
    resolve,
    set_alias,
    version_of,
)
from tests.silent_server import SilentServer

DIGEST = "0123456789abcdef" * 4
NOWHERE = "http://127.0.0.1:9"


@pytest.fixture
def model_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "manifest.json").write_text('{"files": {}}')
    (folder / "model.safetensors").write_bytes(np.arange(8, dtype=np.float32).tobytes())
    return folder


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
    assert fetch("registry-scorer", DIGEST, tracking_uri=uri, cache=tmp_path / "other").name == DIGEST
    with pytest.raises(RegistryError, match="no version of 'registry-scorer' with the digest ffff"):
        fetch("registry-scorer", "f" * 64, tracking_uri=uri, cache=tmp_path / "other")
    last_good = resolve("registry-scorer", "champion", tracking_uri=NOWHERE, cache=cache)
    assert last_good == Resolved(version, DIGEST, cache / DIGEST, registry_answered=False)
    _check_the_run(uri, run.run_id)


def resolve_fails_without_alias(uri: str, cache: Path) -> bool:
    with pytest.raises(RegistryError, match=r"has no model 'registry-scorer' with the alias 'champion'"):
        resolve("registry-scorer", "champion", tracking_uri=uri, cache=cache)
    return True


def _check_the_run(uri: str, run_id: str) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=uri)
    run = client.get_run(run_id)
    assert run.info.status == "FINISHED"
    assert (run.data.params["param_129"], run.data.tags["lake.version"]) == ("129", "7")
    assert [point.step for point in client.get_metric_history(run_id, "ap")] == list(range(300))
    assert {item.path for item in client.list_artifacts(run_id)} == {"plots", "budget.json"}
    assert run.outputs is not None
    (made,) = run.outputs.model_outputs
    assert client.get_logged_model(made.model_id).tags["digest"] == DIGEST
    assert run.data.tags["mlflow.source.name"] == "unmask finetune"


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
    with pytest.raises(RegistryError, match="no earlier copy"):
        resolve("registry-scorer", "champion", tracking_uri=NOWHERE, cache=tmp_path)


def last_good_copy(cache: Path, *, version: int = 3) -> None:
    (cache / DIGEST).mkdir(parents=True)
    (cache / "payments-scorer.champion.json").write_text(f'{{"version": {version}, "digest": "{DIGEST}"}}')


def test_a_server_that_never_answers_costs_seconds(silent_server: SilentServer, tmp_path: Path):
    last_good_copy(tmp_path)
    found = resolve("payments-scorer", "champion", tracking_uri=silent_server, cache=tmp_path)
    assert (found.version, found.registry_answered) == (3, False)
    assert silent_server.n_asked == 1  # the client alone asks eight times, for four minutes


@pytest.mark.parametrize(
    ("pointer", "says"),
    [
        (b"{half a po", "is damaged (JSONDecodeError"),
        (b"\xff\xfe", "is damaged (UnicodeDecodeError"),
        (b'["3"]', "is damaged (TypeError"),
        (b'{"version": 3}', "is damaged (KeyError: 'digest')"),
        (f'{{"version": 3, "digest": "{"e" * 64}"}}'.encode(), "names a copy that does not exist"),
        (b'{"version": 3, "digest": "../.."}', "names a copy that does not exist"),
    ],
)
def test_a_damaged_pointer_to_the_last_good_copy_is_reported_with_its_fix(pointer: bytes, says: str, tmp_path: Path):
    last_good_copy(tmp_path)
    (tmp_path / "payments-scorer.champion.json").write_bytes(pointer)
    with pytest.raises(RegistryError, match=r"did not answer .*Start MLflow") as raised:
        resolve("payments-scorer", "champion", tracking_uri=NOWHERE, cache=tmp_path)
    assert says in str(raised.value)


def test_every_call_of_a_silent_server_ends_within_seconds_as_one_sentence(silent_server: SilentServer, tmp_path: Path):
    def run() -> None:
        with open_run("e", tracking_uri=silent_server, run_name="r"):
            raise AssertionError("there is no run")

    calls = [
        run,
        lambda: version_of("m", "champion", tracking_uri=silent_server),
        lambda: set_alias("m", "champion", 1, tracking_uri=silent_server),
        lambda: fetch("m", DIGEST, tracking_uri=silent_server, cache=tmp_path),
    ]
    for call in calls:
        before = silent_server.n_asked
        with pytest.raises(RegistryError, match=r"MLflow at .* did not answer within 3 s; start it"):
            call()
        assert silent_server.n_asked - before == 1
    assert note("e", {"n": 1.0}, tracking_uri=silent_server, run_name="r", tags={}) is None


def test_a_run_whose_server_goes_away_ends_in_time_and_only_what_others_build_on_fails(
    servers: Servers, model_folder: Path, silent_server: SilentServer, caplog: pytest.LogCaptureFixture
):
    from models.ship.registry.client import client_of

    began = time.monotonic()
    with open_run("registry/away", tracking_uri=servers.mlflow_uri, run_name="away") as run:
        run.tracking_uri, run._client = silent_server, client_of(silent_server)
        for step in range(5):
            run.log_metrics({"loss": 1.0}, step=step)
            run.flush()
        run.log_params({"a": 1})
        run.log_table("budget", {"rate": [0.1]})
        with pytest.raises(RegistryError, match="did not answer"):
            run.log_folder(model_folder, "model")
    assert time.monotonic() - began < 120.0  # by default the clients go on for minutes
    assert [r.getMessage() for r in caplog.records if "not stored" in r.getMessage()] != []
    assert "stays unfinished" in caplog.text
