"""Copies of the files of a folder in an object store (S3, Google Cloud Storage, Azure), which all replicas reach."""

import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from obstore.store import ObjectStore

PART = 4 << 20  # bytes of a request, which must be over in the time of `_OPTIONS`
_OPTIONS: Any = {"connect_timeout": "3s", "timeout": "10s"}
_RETRIES: Any = {"max_retries": 1, "retry_timeout": timedelta(seconds=10)}
_SLOW_S, _LEFT_ALONE_S = 3.0, 30.0
_left_alone: dict[str, float] = {}  # stores that did not answer, and until when they are not asked again


@dataclass(frozen=True)
class Place:
    """Where snapshots lie: a local folder and, if there is a URL, an object store with the same files.

    Example:
        >>> Place(Path("snapshots"), "s3://bank/unmask") / "partition-0"
        Place(folder=PosixPath('snapshots/partition-0'), url='s3://bank/unmask/partition-0')
        >>> Place.of(Path("snapshots")) / "partition-0"
        Place(folder=PosixPath('snapshots/partition-0'), url=None)
    """

    folder: Path
    url: str | None = None

    @classmethod
    def of(cls, place: "Path | Place") -> "Place":
        """A folder as a place."""
        return place if isinstance(place, Place) else cls(place)

    def __truediv__(self, name: str) -> "Place":
        return Place(self.folder / name, f"{self.url.rstrip('/')}/{name}" if self.url else None)

    def with_suffix(self, suffix: str) -> "Place":
        """The same place with something added to its name."""
        folder = self.folder.with_name(self.folder.name + suffix)
        return Place(folder, f"{self.url.rstrip('/')}{suffix}" if self.url else None)


class Bucket:
    """The files under a URL such as ``s3://bank/unmask``. A file is there as a whole or not at all.

    Credentials and endpoint come from the environment, by the names of the cloud's own tools (AWS_ACCESS_KEY_ID,
    AWS_ENDPOINT_URL, GOOGLE_APPLICATION_CREDENTIALS, AZURE_STORAGE_ACCOUNT_NAME ...). A connection without TLS must be
    allowed by AWS_ALLOW_HTTP=true. A store that does not answer is not asked again for half a minute, so that many
    partitions do not wait for it one after the other.

    Raises:
        OSError: in every method, if the store cannot be reached or refuses; the message has the URL.
        FileNotFoundError: there is no such file.
    """

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self.url, self._root, self._prefix = url, f"{parts.scheme}://{parts.netloc}", parts.path.strip("/")

    def names(self) -> list[str]:
        """Names of all files, those of folders below with their path."""
        with self._answers() as store:
            listed = [str(one["path"]) for batch in store.list(f"{self._prefix}/") for one in batch]
        return [path[len(self._prefix) + 1 :] for path in listed]

    def has(self, name: str) -> bool:
        """Whether there is a file with this name."""
        try:
            self._size(name)
        except FileNotFoundError:
            return False
        return True

    def put(self, path: Path, name: str) -> None:
        """Store a local file; it replaces another one of that name."""
        with self._answers() as store:
            store.put(self._path(name), path, chunk_size=PART + (1 << 20), max_concurrency=2)

    def get(self, name: str, into: BinaryIO) -> None:
        """Copy a file to a local one."""
        with self.open(name) as source:
            while part := source.read(PART):
                into.write(part)

    @contextmanager
    def open(self, name: str) -> Iterator[BinaryIO]:
        """Read parts of a file, without copying all of it."""
        yield cast(BinaryIO, _Reader(self, name))

    def delete(self, names: Iterable[str]) -> None:
        """Delete files, if they are there."""
        for name in names:
            try:
                with self._answers() as store:
                    store.delete(self._path(name))
            except FileNotFoundError:
                continue

    def move_to(self, other: "Bucket") -> None:
        """Move all files to another place of the same store, which copies them itself; deleted once all are there."""
        names = self.names()
        for name in names:
            with self._answers() as store:
                store.copy(self._path(name), other._path(name))
        self.delete(names)

    def part(self, name: str, start: int, end: int) -> bytes:
        """Bytes [start, end) of a file."""
        with self._answers() as store:
            return bytes(store.get_range(self._path(name), start=start, end=end))

    def _size(self, name: str) -> int:
        with self._answers() as store:
            return int(store.head(self._path(name))["size"])

    def _path(self, name: str) -> str:
        return f"{self._prefix}/{name}" if self._prefix else name

    @cached_property
    def _store(self) -> "ObjectStore":
        from obstore.store import from_url

        may_be_plain = os.environ.get("AWS_ALLOW_HTTP", "").lower() in ("true", "1")
        options = _OPTIONS | {"allow_http": may_be_plain}
        return from_url(self._root, client_options=options, retry_config=_RETRIES)

    @contextmanager
    def _answers(self) -> Iterator["ObjectStore"]:
        """The store. Failures of the library, of many classes, become an OSError in one line."""
        from obstore.exceptions import BaseError

        began_s = time.monotonic()
        if began_s < _left_alone.get(self._root, 0.0):
            raise OSError(f"{self.url}: it did not answer a moment ago, and is left alone for a while")
        try:
            yield self._store
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{self.url}: {_first_line(error)}") from None
        except (BaseError, ValueError) as error:
            if time.monotonic() - began_s > _SLOW_S:
                _left_alone[self._root] = time.monotonic() + _LEFT_ALONE_S
            raise OSError(f"{self.url}: {_first_line(error)}") from None


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]


class _Reader:
    """Reads a file of a bucket from any place on."""

    def __init__(self, bucket: Bucket, name: str) -> None:
        self._bucket, self._name, self._at = bucket, name, 0
        self._size = bucket._size(name)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = offset + (self._size if whence == os.SEEK_END else 0)
        return self._at

    def read(self, n: int) -> bytes:
        start, end = self._at, min(self._at + n, self._size)
        if start < 0:
            raise ValueError(f"{self._name} has no byte {start}")
        self._at = max(start, end)
        return self._bucket.part(self._name, start, end) if start < end else b""
