"""Arrays in pieces, in memory or in one file, written and read without a second copy in memory.

The file: a line that names the format and its version, the length of the head (8 bytes, little-endian), the head
(JSON: metadata of the writer, and name, type and shape of each array), the arrays' bytes one after the other,
and the sha256 of all that.
"""

import fcntl
import hashlib
import io
import json
import math
import os
import struct
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from pipelines.errors import RestoreError
from pipelines.faults import Fault, no_fault

FORMAT = 3
_NAME = b"unmask-snapshot "
_BLOCK = 1 << 20
_MOST_HEAD = 1 << 30


class Pieces:
    """An array that consists of pieces along the first axis, in memory or still in a file.

    Example:
        >>> whole = Pieces.of(np.arange(2), np.arange(3))
        >>> whole.shape, whole.whole().tolist()
        ((5,), [0, 1, 0, 1, 2])
    """

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype[Any], source: "Sequence[NDArray[Any]] | _Stored"):
        self.shape, self.dtype, self._source = shape, dtype, source

    @classmethod
    def of(cls, *arrays: NDArray[Any]) -> Self:
        """Join one or more arrays that differ only in length; they must not be changed later."""
        return cls((sum(len(a) for a in arrays), *arrays[0].shape[1:]), arrays[0].dtype, arrays)

    @property
    def nbytes(self) -> int:
        return self.dtype.itemsize * math.prod(self.shape)

    def into(self, out: NDArray[Any], start: int = 0) -> None:
        """Copy rows `start` to `start + len(out)` to a contiguous `out` of the same type."""
        if isinstance(self._source, _Stored):
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

    def blocks(self) -> Iterator[memoryview]:
        """The bytes in parts, without copying."""
        assert not isinstance(self._source, _Stored), "an array that is stored in a file cannot be written again"
        for array in self._source:
            flat = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
            for start in range(0, len(flat), _BLOCK):
                yield flat[start : start + _BLOCK]


class _Stored(NamedTuple):
    """Position of an array in a file."""

    path: Path
    offset: int

    def into(self, out: NDArray[Any], start: int) -> None:
        with open(self.path, "rb", buffering=0) as file:
            file.seek(self.offset + start * (out.nbytes // max(len(out), 1)))
            left = out.reshape(-1).view(np.uint8).data
            while left:
                n_read = file.readinto(left[:_BLOCK])
                if not n_read:
                    raise RestoreError(f"{self.path.name} was truncated while it was read; delete it")
                left = left[n_read:]


def write(path: Path, meta: Mapping[str, Any], arrays: Mapping[str, Pieces], *, fault: Fault = no_fault) -> None:
    """Write atomically: after a crash or power cut, the file is complete or absent."""
    table = [[name, pieces.dtype.str, pieces.shape] for name, pieces in arrays.items()]
    head = json.dumps({"meta": meta, "arrays": table}).encode()
    digest = hashlib.sha256()
    with unfinished(path) as file:

        def put(data: bytes | memoryview) -> None:
            digest.update(data)
            while data:  # a raw file may write less than requested
                data = memoryview(data)[file.write(data) :]

        put(_NAME + b"%d\n" % FORMAT + struct.pack("<Q", len(head)))
        put(head)
        for pieces in arrays.values():
            for block in pieces.blocks():
                put(block)
        put(digest.digest())
        os.fsync(file.fileno())
        fault("mid_snapshot")
    sync(path.parent)


@contextmanager
def unfinished(path: Path) -> Iterator[io.FileIO]:
    """A temporary file of this writer alone, which gets its name `path` at the end; it is deleted after an exception.

    It is locked until then, so that `clear_unfinished` of another replica leaves it.
    """
    while True:
        temporary = path.with_name(f"{path.stem}.{uuid.uuid4().hex[:12]}.part")
        with open(temporary, "xb", buffering=0) as file:
            with suppress(OSError):  # a file system without locks
                fcntl.flock(file, fcntl.LOCK_EX)
            if os.fstat(file.fileno()).st_nlink == 0:
                continue  # deleted by another replica before it was locked
            try:
                yield file
                os.replace(temporary, path)
            except BaseException:
                with suppress(OSError):
                    temporary.unlink()
                raise
            return


def clear_unfinished(folder: Path) -> None:
    """Delete the temporary files whose writer has died: nobody holds their lock."""
    for temporary in folder.glob("*.part"):
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


def read_meta(path: Path) -> dict[str, Any]:
    """The metadata only, without checking the file's sha256.

    Raises:
        RestoreError: the file is damaged, or was written by another version.
    """
    with open(path, "rb") as file:
        return _head(file, path)[0]


def read(path: Path) -> tuple[dict[str, Any], dict[str, Pieces]]:
    """Metadata and arrays of a file, after checking its sha256. Array data is read only when needed.

    Raises:
        RestoreError: the file is damaged, or was written by another version.
    """
    with open(path, "rb") as file:
        meta, arrays, end = _head(file, path)
        file.seek(0)
        digest, left = hashlib.sha256(), end
        buffer = memoryview(bytearray(_BLOCK))
        while left and (n_read := file.readinto(buffer[: min(left, _BLOCK)])):
            digest.update(buffer[:n_read])
            left -= n_read
        if left or file.read() != digest.digest():
            raise _damaged(path)
    return meta, arrays


def _head(file: BinaryIO, path: Path) -> tuple[dict[str, Any], dict[str, Pieces], int]:
    """Metadata, arrays and the position of the sha256."""
    start = file.read(66)
    line, newline, _ = start.partition(b"\n")
    if not newline or not line.startswith(_NAME):
        raise _of_format_1(path) if _is_format_1(start) else _damaged(path)
    if line != _NAME + b"%d" % FORMAT:
        raise RestoreError(
            f"{path.name} was written by another version of Unmask (snapshot format {line[len(_NAME) :].decode()!r}, "
            f"this version reads {FORMAT}); an older snapshot or the input is used"
        )
    file.seek(len(line) + 1)
    (n_head,) = struct.unpack("<Q", file.read(8).ljust(8, b"\xff"))
    try:
        head = json.loads(file.read(n_head) if n_head < _MOST_HEAD else b"")
        offset, arrays = file.tell(), {}
        for name, kind, shape in head["arrays"]:
            arrays[name] = Pieces(tuple(shape), np.dtype(kind), _Stored(path, offset))
            offset += arrays[name].nbytes
        meta = head["meta"]
    except (ValueError, KeyError, TypeError):
        raise _damaged(path) from None
    return meta, arrays, offset


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
