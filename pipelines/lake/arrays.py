"""Arrays in .npy files: written row by row or as a whole, read memory-mapped, so they may be larger than memory."""

import shutil
import threading
import uuid
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipelines.features.draft import sync

# numpy parses a header by `ast`, which in Python 3.11 fails now and then in two threads at once (SystemError).
_parsing = threading.Lock()


def mapped(path: Path) -> NDArray[Any]:
    """The array in a file, memory-mapped."""
    with open(path, "rb") as file, _parsing:
        np.lib.format.read_magic(file)
        shape, is_fortran, dtype = np.lib.format.read_array_header_1_0(file)
        begin = file.tell()
    if 0 in shape:  # empty files cannot be mapped
        return np.empty(shape, dtype)
    return np.asarray(np.memmap(path, dtype, "r", begin, shape, "F" if is_fortran else "C"))


class GrowingArray:
    """A .npy file written row by row. Its header has a fixed size and gets the number of rows at the end.

    Args:
        width: number of columns; None = one number per row.
    """

    def __init__(self, path: Path, dtype: type, width: int | None) -> None:
        self._dtype, self._width, self._n = np.dtype(dtype), width, 0
        self._file = open(path, "wb")  # noqa: SIM115 - closed by `close`
        self._head()

    def append(self, rows: NDArray[Any]) -> None:
        assert rows.shape[1:] == (() if self._width is None else (self._width,))
        self._file.write(np.ascontiguousarray(rows, self._dtype).data)
        self._n += len(rows)

    def close(self) -> None:
        self._file.seek(0)
        self._head()
        self._file.close()

    def _head(self) -> None:
        shape = (self._n,) if self._width is None else (self._n, self._width)
        descr = np.lib.format.dtype_to_descr(self._dtype)
        np.lib.format.write_array_header_1_0(self._file, {"descr": descr, "fortran_order": False, "shape": shape})


@contextmanager
def growing(folder: Path, shapes: Mapping[str, tuple[type, int | None]]) -> Iterator[dict[str, GrowingArray]]:
    """Arrays in a folder by name, each with its type and width; they are closed at the end."""
    with ExitStack() as stack:
        files = {name: GrowingArray(folder / f"{name}.npy", *shape) for name, shape in shapes.items()}
        for file in files.values():
            stack.enter_context(closing(file))
        yield files


class TextFile:
    """An Arrow file with one column of texts, written piece by piece."""

    _SCHEMA = pa.schema([("event_id", pa.large_string())])

    def __init__(self, path: Path) -> None:
        self._file = pa.OSFile(str(path), "wb")
        self._writer = pa.ipc.new_file(self._file, self._SCHEMA)

    def append(self, texts: pa.Array | pa.ChunkedArray) -> None:
        self._writer.write(pa.table([texts], schema=self._SCHEMA))

    def close(self) -> None:
        self._writer.close()
        self._file.close()


def mapped_texts(path: Path) -> pa.ChunkedArray:
    """The texts in a file, memory-mapped."""
    return pa.ipc.open_file(pa.memory_map(str(path))).read_all()["event_id"]


class Draft:
    """A folder that appears under its name as a whole, on disk, or not at all; also if several write it at once."""

    def __init__(self, path: Path) -> None:
        self._path, self.folder = path, path.with_name(f".{path.name}-{uuid.uuid4().hex}")
        self.folder.mkdir()

    def save(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Write arrays to files of their names."""
        for name, array in arrays.items():
            np.save(self.folder / f"{name}.npy", array)

    def finish(self) -> None:
        """Give the folder its name; if another one has it already, that one stays."""
        for path in (*self.folder.iterdir(), self.folder):
            sync(path)
        try:
            self.folder.rename(self._path)
        except OSError:
            if not self._path.is_dir():
                raise
            shutil.rmtree(self.folder)
