"""Model versions and their aliases."""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from models.ship.registry.client import asked, client_of
from models.ship.registry.runs import Run

Alias = Literal["champion", "challenger", "candidate"]

MODEL_FOLDER = "model"  # in the artifacts of a run


def register(name: str, run: Run, folder: Path, *, digest: str, tags: Mapping[str, str], description: str = "") -> int:
    """Upload a model to its run and make it the next version of `name`.

    Args:
        name: name of the model, such as "payments-scorer".
        run: run that trained it.
        folder: files of the model, written by `models.ship.artifact.save`.
        digest: return value of `save`.
        tags: lineage and metrics, shown with the version.

    Returns:
        The number of the version.

    Raises:
        RegistryError: MLflow does not answer, or reports an error.
    """
    from mlflow.exceptions import MlflowException

    client = client_of(run.tracking_uri)
    run.log_folder(folder, MODEL_FOLDER)
    with asked(run.tracking_uri):
        try:
            client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        source = f"{client.get_run(run.run_id).info.artifact_uri}/{MODEL_FOLDER}"
        marks = {**tags, "digest": digest}
        made = client.create_model_version(
            name, source, run.run_id, tags=marks, description=description, await_creation_for=0
        )
    return int(made.version)


def set_alias(name: str, alias: Alias, version: int, *, tracking_uri: str) -> None:
    """Move an alias to this version.

    Raises:
        RegistryError: MLflow does not answer, or reports an error.
    """
    with asked(tracking_uri):
        client_of(tracking_uri).set_registered_model_alias(name, alias, str(version))


def set_tag(name: str, version: int, key: str, value: str, *, tracking_uri: str) -> None:
    """Set a tag of a version.

    Raises:
        RegistryError: MLflow does not answer, or reports an error.
    """
    with asked(tracking_uri):
        client_of(tracking_uri).set_model_version_tag(name, str(version), key, value)


def version_of(name: str, alias: Alias, *, tracking_uri: str) -> tuple[int, dict[str, str]] | None:
    """The version that an alias points to, and its tags; None if there is no such model or alias.

    Raises:
        RegistryError: MLflow does not answer.
    """
    from mlflow.exceptions import MlflowException

    with asked(tracking_uri):
        try:
            found = client_of(tracking_uri).get_model_version_by_alias(name, alias)
        except MlflowException as error:
            if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                return None
            raise
    return int(found.version), dict(found.tags)


def version_with(name: str, digest: str, *, tracking_uri: str) -> int | None:
    """The version of `name` with this digest; None if there is none.

    Raises:
        RegistryError: MLflow does not answer.
    """
    with asked(tracking_uri):
        wanted = f"name = '{name}' and tags.digest = '{digest}'"
        found = client_of(tracking_uri).search_model_versions(wanted, max_results=1)
    return int(found[0].version) if found else None
