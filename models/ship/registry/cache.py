"""Local model cache, one folder per digest. If MLflow is not available, the last good copy is used."""

import json
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from models.ship.registry.client import NoVersionError, RegistryError, asked, client_of
from models.ship.registry.serving import DATA
from models.ship.registry.versions import Alias, version_of, version_with

log = logging.getLogger(__name__)

_DIGEST = re.compile(r"[0-9a-f]{16,128}")  # it is used as a folder name


@dataclass(frozen=True)
class Resolved:
    """A model in the local cache.

    Args:
        version: version number in the registry.
        digest: SHA-256 of the model's manifest, to pass to `models.ship.artifact.load`.
        folder: folder of the model's files.
        registry_answered: False if MLflow did not answer, so that this is the last good copy.
    """

    version: int
    digest: str
    folder: Path
    registry_answered: bool


def resolve(name: str, alias: Alias, *, tracking_uri: str, cache: Path) -> Resolved:
    """Download the model that `alias` points to into the cache. If MLflow is not available, return the last good copy.

    An alias can be moved, so the result identifies the model by version and digest.

    Args:
        name: name of the model, such as "payments-scorer".
        alias: "champion", "challenger" or "candidate".
        tracking_uri: address of the MLflow server.
        cache: folder of model copies, one per digest.

    Raises:
        RegistryError: there is no such model, or MLflow is not available and there is no copy.
    """
    pointer = cache / f"{name}.{alias}.json"
    try:
        found = version_of(name, alias, tracking_uri=tracking_uri)
    except RegistryError as error:
        return _last_good(pointer, cache, error)
    if found is None:
        raise RegistryError(
            f"MLflow at {tracking_uri} has no model {name!r} with the alias {alias!r}; promote one first "
            "(`unmask promote`)"
        )
    version, tags = found
    digest = _digest_of(name, version, tags)
    folder = cache / digest
    try:
        if not folder.is_dir():
            _download(name, version, folder, tracking_uri)
        _write(pointer, {"version": version, "digest": digest})
    except (RegistryError, OSError) as error:
        if not folder.is_dir():
            return _last_good(pointer, cache, error)
        log.warning(
            "the last good copy could not be recorded; a start without MLflow may use an older model: %s", error
        )
    return Resolved(version, digest, folder, registry_answered=True)


def resolve_version(name: str, version: int, *, tracking_uri: str, cache: Path) -> tuple[Resolved, dict[str, str]]:
    """Download a version into the cache, independent of aliases. Return it and its tags.

    Raises:
        NoVersionError: there is no such version.
        RegistryError: it has no digest, or MLflow does not answer.
    """
    from mlflow.exceptions import MlflowException

    with asked(tracking_uri):
        try:
            tags = dict(client_of(tracking_uri).get_model_version(name, str(version)).tags)
        except MlflowException as error:
            if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                raise
            raise NoVersionError(f"MLflow has no version {version} of {name!r}: {error.message}") from error
    digest = _digest_of(name, version, tags)
    if not (cache / digest).is_dir():
        _download(name, version, cache / digest, tracking_uri)
    return Resolved(version, digest, cache / digest, registry_answered=True), tags


def fetch(name: str, digest: str, *, tracking_uri: str, cache: Path) -> Path:
    """The folder of the model with this digest, downloaded from MLflow if it is not in the cache.

    Raises:
        RegistryError: there is no copy, and MLflow is not available or has no such version.
    """
    if not _DIGEST.fullmatch(digest):
        raise RegistryError(f"{digest[:80]!r} is not the digest of a model; it must be hexadecimal")
    folder = cache / digest
    if folder.is_dir():
        return folder
    version = version_with(name, digest, tracking_uri=tracking_uri)
    if version is None:
        raise RegistryError(f"MLflow at {tracking_uri} has no version of {name!r} with the digest {digest[:12]}")
    try:
        _download(name, version, folder, tracking_uri)
    except OSError as error:
        raise RegistryError(f"model {digest[:12]} cannot be stored in {cache}: {error}") from error
    return folder


def _digest_of(name: str, version: int, tags: Mapping[str, str]) -> str:
    digest = tags.get("digest", "")
    if not _DIGEST.fullmatch(digest):
        raise RegistryError(
            f"the tag `digest` of version {version} of {name!r} is {digest!r}; it must be hexadecimal. Run "
            "`unmask finetune` to register a new version"
        )
    return digest


def _last_good(pointer: Path, cache: Path, why: Exception) -> Resolved:
    try:
        last = json.loads(pointer.read_text())
        version, digest = int(last["version"]), str(last["digest"])
    except FileNotFoundError:
        raise RegistryError(
            f"{why}; there is no earlier copy of the model in {cache} either. Start MLflow, or copy a model cache there"
        ) from why
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RegistryError(
            f"{why}; {pointer}, which names the last good copy, is damaged ({type(error).__name__}: {error}). Start "
            "MLflow to rebuild it"
        ) from why
    if not (_DIGEST.fullmatch(digest) and (cache / digest).is_dir()):
        raise RegistryError(
            f"{why}; {pointer} names a copy that does not exist ({digest[:80]!r}). Start MLflow to download it"
        ) from why
    return Resolved(version, digest, cache / digest, registry_answered=False)


def _download(name: str, version: int, folder: Path, tracking_uri: str) -> None:
    """Download the files of a version. The folder is created completely or not at all."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as draft:
        with asked(tracking_uri):
            from mlflow.artifacts import download_artifacts

            source = client_of(tracking_uri).get_model_version_download_uri(name, str(version))
            got = Path(download_artifacts(artifact_uri=source, dst_path=draft, tracking_uri=tracking_uri))
        if not folder.is_dir():
            shutil.move(got / DATA if (got / DATA).is_dir() else got, folder)


def _write(target: Path, value: Mapping[str, object]) -> None:
    draft = target.with_suffix(f".{os.getpid()}")
    draft.write_text(json.dumps(value) + "\n")
    draft.replace(target)
