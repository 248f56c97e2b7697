"""Model versions and their aliases."""

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

from models.ship.registry.client import asked, client_of
from models.ship.registry.runs import Run
from models.ship.registry.serving import Serving, write_servable

Alias = Literal["champion", "challenger", "candidate"]


def register(
    name: str,
    run: Run,
    folder: Path,
    *,
    digest: str,
    tags: Mapping[str, str],
    description: str = "",
    serving: Serving | None = None,
) -> int:
    """Upload a model as a logged model of its run, and make it the next version of `name`.

    Args:
        name: name of the model, such as "payments-scorer".
        run: run that trained it.
        folder: files of the model, written by `models.ship.artifact.save`.
        digest: return value of `save`.
        tags: lineage and metrics, shown with the version.
        description: shown with the version, Markdown.
        serving: how MLflow loads the model; None: it cannot.

    Returns:
        The number of the version.

    Raises:
        RegistryError: MLflow does not answer, or reports an error.
    """
    from mlflow.entities import LoggedModelOutput
    from mlflow.exceptions import MlflowException

    client, marks = client_of(run.tracking_uri), {**tags, "digest": digest}
    with asked(run.tracking_uri):
        try:
            client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        logged = client.create_logged_model(
            run.experiment_id, name=name, source_run_id=run.run_id, tags={"digest": digest}, model_type="scorer"
        )
        status: Literal["READY", "FAILED"] = "FAILED"
        try:
            with TemporaryDirectory() as draft:
                if serving is not None:
                    servable = Path(draft) / "servable"
                    write_servable(servable, folder, serving, run_id=run.run_id, model_id=logged.model_id)
                    folder = servable
                client.log_model_artifacts(logged.model_id, str(folder))
            status = "READY"
        finally:
            client.finalize_logged_model(logged.model_id, status)
        client.log_outputs(run.run_id, [LoggedModelOutput(logged.model_id, step=0)])
        made = client.create_model_version(
            name,
            f"models:/{logged.model_id}",
            run.run_id,
            tags=marks,
            description=description,
            await_creation_for=0,
            model_id=logged.model_id,
        )
    return int(made.version)


def version_url(name: str, version: int, *, tracking_uri: str) -> str:
    """Address of a version's page."""
    return f"{tracking_uri.rstrip('/')}/#/models/{name}/versions/{version}"


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


def versions_like(name: str, prefix: str, *, tracking_uri: str) -> list[tuple[int, dict[str, str]]]:
    """Versions of `name` whose digest begins with some hexadecimal digits, and their tags, the newest first.

    Raises:
        RegistryError: MLflow does not answer.
    """
    with asked(tracking_uri):
        wanted = f"name = '{name}' and tags.digest LIKE '{prefix}%'"
        found = client_of(tracking_uri).search_model_versions(wanted)
    return sorted(((int(one.version), dict(one.tags)) for one in found), key=lambda one: -one[0])
