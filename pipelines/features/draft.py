"""A snapshot file that is being written: a temporary file of this writer alone, which gets its name at the end."""

import fcntl
import hashlib
import json
import os
import struct
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import zstandard
from numpy.typing import NDArray

from pipelines.faults import Fault, no_fault
from pipelines.features.pieces import FORMAT, FRAME, NAME, Pieces

_LEVEL = 1  # of zstd: higher ones take several times as long for a few percent
SUFFIX = ".part"


class Draft:
    """A file in the format of `pieces`, written array by array: after a crash or power cut, it is complete or absent.

    It is locked until it is finished, so that `clear_drafts` of another replica leaves it.
    """

    def __init__(self, path: Path, *, fault: Fault = no_fault) -> None:
        self._path, self._fault = path, fault
        self._temporary, self._file = _opened(path)
        self._digest = hashlib.sha256()
        self._at = 0
        self._arrays: dict[str, tuple[np.dtype[Any], list[int], list[tuple[int, int, int]]]] = {}
        self._zstd = zstandard.ZstdCompressor(level=_LEVEL)
        self._put(NAME + b"%d\n" % FORMAT)

    def add(self, name: str, array: NDArray[Any]) -> None:
        """Append an array, or a further piece of it."""
        _, shape, frames = self._arrays.setdefault(name, (array.dtype, [0, *array.shape[1:]], []))
        shape[0] += len(array)
        flat = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
        for start in range(0, len(flat), FRAME):
            part = flat[start : start + FRAME]
            data = self._zstd.compress(part)
            frames.append((self._at, len(data), len(part)))
            self._put(data)

    def finish(self, meta: Mapping[str, Any]) -> None:
        """Write the index, and give the file its name."""
        table = [[name, kind.str, shape, frames] for name, (kind, shape, frames) in self._arrays.items()]
        index = json.dumps({"meta": meta, "arrays": table}).encode()
        self._put(index + struct.pack("<Q", len(index)))
        self._put(self._digest.digest())
        os.fsync(self._file.fileno())
        self._fault("mid_snapshot")
        _named(self._temporary, self._path)
        self._file.close()

    def abandon(self) -> None:
        """Delete the file."""
        self._file.close()
        with suppress(OSError):
            self._temporary.unlink()

    def _put(self, data: bytes) -> None:
        self._digest.update(data)
        self._at += len(data)
        left = memoryview(data)
        while left:  # a raw file may write less than requested
            left = left[self._file.write(left) :]


def write(path: Path, meta: Mapping[str, Any], arrays: Mapping[str, Pieces], *, fault: Fault = no_fault) -> None:
    """Write a whole file; if this fails, nothing is left of it."""
    draft = Draft(path, fault=fault)
    try:
        for name, pieces in arrays.items():
            for part in pieces.parts():
                draft.add(name, part)
        draft.finish(meta)
    except BaseException:
        draft.abandon()
        raise


@contextmanager
def completed(path: Path) -> Iterator[BinaryIO]:
    """A file to write to, which gets its name when all is written; if this fails, nothing is left of it."""
    temporary, file = _opened(path)
    try:
        yield file
        os.fsync(file.fileno())
        _named(temporary, path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise
    finally:
        file.close()


def _opened(path: Path) -> tuple[Path, FileIO]:
    """A temporary file of this writer alone, beside its final path, and locked."""
    while True:
        temporary = path.with_name(f"{path.stem}.{uuid.uuid4().hex[:12]}{SUFFIX}")
        file = open(temporary, "xb", buffering=0)  # noqa: SIM115
        with suppress(OSError):  # a file system without locks
            fcntl.flock(file, fcntl.LOCK_EX)
        if os.fstat(file.fileno()).st_nlink:
            return temporary, file
        file.close()  # deleted by another replica before it was locked


def _named(temporary: Path, path: Path) -> None:
    os.replace(temporary, path)
    sync(path.parent)


def clear_drafts(folder: Path) -> None:
    """Delete the temporary files whose writer has died: nobody holds their lock."""
    for temporary in folder.glob(f"*{SUFFIX}"):
        with suppress(OSError), open(temporary, "rb") as file:  # what cannot be deleted is reported at the next write
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            temporary.unlink()


def sync(path: Path) -> None:
    """Flush a file or a folder to disk, so that it survives a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
