"""Files under a manifest of sha256 sums."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from models.errors import ModelError

FORMAT = 1


MAX_FILE_BYTES = 256 * 1024 * 1024


MAX_MANIFEST_BYTES = 64 * 1024


class ArtifactError(ModelError):
    """A model's files do not match their manifest, or are not what a model may hold."""


def write_files(folder: Path, contents: Mapping[str, bytes], *, lineage: Mapping[str, str]) -> str:
    """Write files and, last, their manifest; returns its sha256, the digest that names them all."""
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
    """The digest and the files that `write_files` wrote.

    Raises:
        ArtifactError: other files than `names`, one that was changed, or another digest than `expect`.
    """
    digest, manifest = _manifest(folder, names, expect)
    return digest, {name: _checked(folder, name, manifest["files"][name]) for name in names}


def _manifest(folder: Path, allowed: Sequence[str], expect: str | None) -> tuple[str, dict[str, Any]]:
    path = folder / "manifest.json"
    if not path.is_file() or path.is_symlink():
        raise ArtifactError(
            f"a model needs manifest.json, however: {folder.name} has none; it was not saved completely"
        )
    if path.stat().st_size > MAX_MANIFEST_BYTES:
        raise ArtifactError(f"manifest.json may have {MAX_MANIFEST_BYTES} bytes, however: {path.stat().st_size}")
    text = path.read_bytes()
    digest = _sha(text)
    if expect is not None and digest != expect:
        raise ArtifactError(f"manifest.json must have sha256 {expect}, however: {digest}; fetch the model again")
    try:
        manifest: dict[str, Any] = json.loads(text)
        names, version = set(manifest["files"]), manifest["format"]
    except (ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"manifest.json must be a JSON object with format and files, however: {error}") from error
    if version != FORMAT:
        raise ArtifactError(f"manifest.json must have format {FORMAT}, however: {version!r}; use the fitting version")
    if names != set(allowed):
        odd = sorted(names ^ set(allowed))
        raise ArtifactError(f"manifest.json must name exactly {allowed}, however: it differs in {odd}; save again")
    return digest, manifest


def _checked(folder: Path, name: str, said: Mapping[str, Any]) -> bytes:
    path = folder / name
    if not path.is_file() or path.is_symlink():
        raise ArtifactError(f"{name} must be a plain file, however: it is missing or a link; fetch the model again")
    size = path.stat().st_size
    if size > MAX_FILE_BYTES or size != said.get("size"):
        raise ArtifactError(f"{name} must have {said.get('size')} bytes (at most {MAX_FILE_BYTES}), however: {size}")
    content = path.read_bytes()
    if _sha(content) != said.get("sha256"):
        raise ArtifactError(
            f"{name} must have sha256 {said.get('sha256')}, however: {_sha(content)}; fetch the model again"
        )
    return content


def _sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
