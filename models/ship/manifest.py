"""Folders of files with a manifest of SHA-256 hashes."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from models.errors import ModelError

FORMAT = 4


MAX_FILE_BYTES = 256 * 1024 * 1024


MAX_MANIFEST_BYTES = 64 * 1024


class ArtifactError(ModelError):
    """The files of a model do not match their manifest, or have an invalid content."""


def write_files(folder: Path, contents: Mapping[str, bytes], *, lineage: Mapping[str, str]) -> str:
    """Write files and, last, their manifest. Return the SHA-256 of the manifest: the digest of the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "manifest.json").unlink(missing_ok=True)
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    manifest = {
        "format": FORMAT,
        "files": {name: {"sha256": _sha(content), "size": len(content)} for name, content in contents.items()},
        "lineage": dict(lineage),
    }
    text = json.dumps(manifest, indent=1, sort_keys=True).encode()
    unfinished = folder / "manifest.json.unfinished"
    unfinished.write_bytes(text)
    os.replace(unfinished, folder / "manifest.json")
    return _sha(text)


def read_files(folder: Path, names: Sequence[str], *, expect: str | None = None) -> tuple[str, dict[str, bytes]]:
    """Read and check a folder that `write_files` wrote. Return its digest and the content of each file.

    Raises:
        ArtifactError: the files are not exactly `names`, a file was changed, or the digest is not `expect`.
    """
    digest, manifest = _manifest(folder, names, expect)
    return digest, {name: _checked(folder, name, manifest["files"][name]) for name in names}


def _manifest(folder: Path, allowed: Sequence[str], expect: str | None) -> tuple[str, dict[str, Any]]:
    path = folder / "manifest.json"
    if not path.is_file() or path.is_symlink():
        raise ArtifactError(
            f"{folder.name} has no manifest.json: the model was not saved completely; save or download it again"
        )
    if path.stat().st_size > MAX_MANIFEST_BYTES:
        raise ArtifactError(f"manifest.json has {path.stat().st_size} bytes; at most {MAX_MANIFEST_BYTES} are allowed")
    text = path.read_bytes()
    digest = _sha(text)
    if expect is not None and digest != expect:
        raise ArtifactError(f"manifest.json has sha256 {digest}; expected {expect}. Download the model again")
    try:
        manifest: dict[str, Any] = json.loads(text)
        names, version = set(manifest["files"]), manifest["format"]
    except (ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"manifest.json is not a JSON object with format and files: {error}") from error
    if version != FORMAT:
        raise ArtifactError(
            f"manifest.json has format {version!r}; this version of Unmask reads format {FORMAT}. "
            "Use the version that saved the model"
        )
    if names != set(allowed):
        odd = sorted(names ^ set(allowed))
        raise ArtifactError(f"manifest.json must list exactly {allowed}; it differs in {odd}. Save the model again")
    return digest, manifest


def _checked(folder: Path, name: str, said: Mapping[str, Any]) -> bytes:
    path = folder / name
    if not path.is_file() or path.is_symlink():
        raise ArtifactError(f"{name} is missing or a link; it must be a regular file. Download the model again")
    size = path.stat().st_size
    if size > MAX_FILE_BYTES or size != said.get("size"):
        raise ArtifactError(
            f"{name} has {size} bytes; expected {said.get('size')} (at most {MAX_FILE_BYTES}). Download the model again"
        )
    content = path.read_bytes()
    if _sha(content) != said.get("sha256"):
        raise ArtifactError(
            f"{name} has sha256 {_sha(content)}; expected {said.get('sha256')}. Download the model again"
        )
    return content


def _sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
