"""Arrays in pieces, in memory or in one file, written and read without a second copy in memory.

The file: a line that names the format and its version; frames, each up to 1 MiB of an array compressed with zstd; the
index (JSON: metadata of the writer; for each array its name, type, shape and frames); the length of the index (8 bytes,
little-endian); the sha256 of all that.
"""

import hashlib
import json
import math
import os
import struct
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Self

import numpy as np
import zstandard
from numpy.typing import NDArray

from pipelines.errors import RestoreError

FORMAT = 4
NAME = b"unmask-snapshot "
FRAME = 1 << 20  # bytes before compression
DIGEST = 32
_BLOCK = 1 << 20


class Pieces:
    """An array that consists of pieces along the first axis, in memory or still in a file.

    Example:
        >>> whole = Pieces.of(np.arange(2), np.arange(3))
        >>> whole.shape, whole.whole().tolist()
        ((5,), [0, 1, 0, 1, 2])
    """

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype[Any], source: "Sequence[NDArray[Any]] | _Source"):
        self.shape, self.dtype, self._source = shape, dtype, source

    @classmethod
    def of(cls, *arrays: NDArray[Any]) -> Self:
        """Join one or more arrays that differ only in length; they must not be changed later."""
        return cls((sum(len(a) for a in arrays), *arrays[0].shape[1:]), arrays[0].dtype, arrays)

    def followed_by(self, after: "Pieces", *, skipped: int) -> "Pieces":
        """This array without its first rows, then another."""
        n = self.shape[0] - skipped
        return Pieces((n + after.shape[0], *self.shape[1:]), self.dtype, _Chain(self, skipped, n, after))

    @property
    def nbytes(self) -> int:
        return self.dtype.itemsize * math.prod(self.shape)

    def into(self, out: NDArray[Any], start: int = 0) -> None:
        """Copy rows `start` to `start + len(out)` to a contiguous `out` of the same type."""
        if isinstance(self._source, _Stored | _Chain):
            self._source.into(out, start)
            return
        done = at = 0
        for array in self._source:
            part = array[max(start - at, 0) : max(start + len(out) - at, 0)]
            out[done : done + len(part)] = part
            done, at = done + len(part), at + len(array)

    def whole(self) -> NDArray[Any]:
        """The whole array in memory."""
        out: NDArray[Any] = np.empty(self.shape, self.dtype)
        self.into(out)
        return out

    def tobytes(self) -> bytes:
        """Size of the whole array in bytes."""
        return self.whole().tobytes()

    def parts(self) -> Sequence[NDArray[Any]]:
        """The arrays that it consists of."""
        assert not isinstance(self._source, _Stored | _Chain), "an array that is stored in a file is not written again"
        return self._source


def joined(parts: Iterable[tuple[str, NDArray[Any]]]) -> dict[str, Pieces]:
    """Arrays by name, from their parts in order."""
    arrays: dict[str, list[NDArray[Any]]] = {}
    for name, part in parts:
        arrays.setdefault(name, []).append(part)
    return {name: Pieces.of(*found) for name, found in arrays.items()}


class _Frame(NamedTuple):
    """A part of an array in a file: where it is, its length there, and its bytes before compression."""

    offset: int
    n_stored: int
    n_bytes: int


class _Stored(NamedTuple):
    """An array in a file."""

    path: Path
    frames: Sequence[_Frame]

    def into(self, out: NDArray[Any], start: int) -> None:
        left = out.reshape(-1).view(np.uint8).data
        skipped = start * (out.nbytes // max(len(out), 1))
        reader = zstandard.ZstdDecompressor()
        with open(self.path, "rb", buffering=0) as file:
            for frame in self.frames:
                if not left:
                    return
                if skipped >= frame.n_bytes:
                    skipped -= frame.n_bytes
                    continue
                file.seek(frame.offset)
                try:
                    data = reader.decompress(file.read(frame.n_stored), frame.n_bytes)
                except zstandard.ZstdError as error:
                    raise RestoreError(f"{self.path.name} was changed while it was read ({error}); delete it") from None
                part = memoryview(data)[skipped : skipped + len(left)]
                left[: len(part)] = part
                left, skipped = left[len(part) :], 0
        if left:
            raise RestoreError(f"{self.path.name} is shorter than its index says; delete it")


class _Chain(NamedTuple):
    """Rows of an array from `skipped` on, `n` of them; then another array."""

    before: Pieces
    skipped: int
    n: int
    after: Pieces

    def into(self, out: NDArray[Any], start: int) -> None:
        n_before = min(max(self.n - start, 0), len(out))
        if n_before:
            self.before.into(out[:n_before], self.skipped + start)
        if n_before < len(out):
            self.after.into(out[n_before:], max(start - self.n, 0))


_Source = _Stored | _Chain


def read_meta(path: Path) -> dict[str, Any]:
    """The metadata only, without checking the file's sha256.

    Raises:
        RestoreError: the file is damaged, or was written by another version.
    """
    with open(path, "rb") as file:
        return meta_of(file, path)


def meta_of(file: BinaryIO, path: Path) -> dict[str, Any]:
    """The same of an open file; its path is for messages."""
    return _index(file, path)[0]


def read(path: Path) -> tuple[dict[str, Any], dict[str, Pieces]]:
    """Metadata and arrays of a file, after checking its sha256. Array data is read only when needed.

    Raises:
        RestoreError: the file is damaged, or was written by another version.
    """
    with open(path, "rb") as file:
        meta, arrays = _index(file, path)
        file.seek(0)
        digest, left = hashlib.sha256(), path.stat().st_size - DIGEST
        buffer = memoryview(bytearray(_BLOCK))
        while left and (n_read := file.readinto(buffer[: min(left, _BLOCK)])):
            digest.update(buffer[:n_read])
            left -= n_read
        if left or file.read() != digest.digest():
            raise _damaged(path)
    return meta, arrays


def _index(file: BinaryIO, path: Path) -> tuple[dict[str, Any], dict[str, Pieces]]:
    """Metadata and arrays."""
    start = file.read(66)
    line, newline, _ = start.partition(b"\n")
    if not newline or not line.startswith(NAME):
        raise _of_format_1(path) if _is_format_1(start) else _damaged(path)
    if line != NAME + b"%d" % FORMAT:
        raise RestoreError(
            f"{path.name} was written by another version of Unmask (snapshot format {line[len(NAME) :].decode()!r}, "
            f"this version reads {FORMAT}); an older snapshot or the input is used"
        )
    end = file.seek(0, os.SEEK_END) - DIGEST
    try:
        file.seek(end - 8)
        (n_index,) = struct.unpack("<Q", file.read(8))
        file.seek(end - 8 - n_index)
        index = json.loads(file.read(n_index))
        arrays = {}
        for name, kind, shape, frames in index["arrays"]:
            stored = _Stored(path, [_Frame(*frame) for frame in frames])
            arrays[name] = Pieces(tuple(shape), np.dtype(kind), stored)
        meta = index["meta"]
    except (ValueError, KeyError, TypeError, OSError, struct.error, OverflowError, MemoryError):
        raise _damaged(path) from None
    return meta, arrays


def _is_format_1(start: bytes) -> bool:
    """64 hex digits of a sha256, then a zip file."""
    return len(start) == 66 and start[64:] == b"PK" and not start[:64].strip(b"0123456789abcdef")


def _of_format_1(path: Path) -> RestoreError:
    return RestoreError(
        f"{path.name} was written by an older version of Unmask (snapshot format 1, this version reads {FORMAT}); "
        "the state is rebuilt from the input"
    )


def _damaged(path: Path) -> RestoreError:
    return RestoreError(
        f"{path.name} is damaged (its sha256 does not match); delete it; an older snapshot or the input is used"
    )
