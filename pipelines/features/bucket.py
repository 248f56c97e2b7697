"""Copies of the files of a folder in an object store (S3, Google Cloud Storage, Azure), which all replicas reach."""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import TYPE_CHECKING, Any, BinaryIO, cast

if TYPE_CHECKING:
    from obstore.store import ObjectStore

_CONNECT, _REQUEST = "3s", "10s"  # a request has up to 5 MB
_RETRIES: Any = {"max_retries": 1, "retry_timeout": timedelta(seconds=10)}


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
    allowed by AWS_ALLOW_HTTP=true.

    Raises:
        OSError: in every method, if the store cannot be reached or refuses; the message has the URL.
        FileNotFoundError: there is no such file.
    """

    def __init__(self, url: str) -> None:
        from obstore.store import from_url

        self.url = url
        may_be_plain = os.environ.get("AWS_ALLOW_HTTP", "").lower() in ("true", "1")
        options: Any = {"connect_timeout": _CONNECT, "timeout": _REQUEST, "allow_http": may_be_plain}
        with self._told():
            self._store = from_url(url, client_options=options, retry_config=_RETRIES)

    def names(self) -> list[str]:
        """Names of all files, those of folders below with their path."""
        with self._told():
            return [str(one["path"]) for batch in self._store.list() for one in batch]

    def has(self, name: str) -> bool:
        """Whether there is a file with this name."""
        try:
            with self._told():
                self._store.head(name)
        except FileNotFoundError:
            return False
        return True

    def put(self, path: Path, name: str) -> None:
        """Store a local file; it replaces another one of that name."""
        with self._told():
            self._store.put(name, path)

    def get(self, name: str, into: BinaryIO) -> None:
        """Copy a file to a local one."""
        with self._told():
            for part in self._store.get(name).stream():
                into.write(part)

    @contextmanager
    def open(self, name: str) -> Iterator[BinaryIO]:
        """Read parts of a file, without copying all of it."""
        with self._told():
            yield cast(BinaryIO, _Reader(self._store, name))

    def delete(self, names: Iterable[str]) -> None:
        """Delete files, if they are there."""
        for name in names:
            with self._told():
                try:
                    self._store.delete(name)
                except FileNotFoundError:
                    continue

    def copy_to(self, other: "Bucket") -> None:
        """Copy all files to another place."""
        for name in self.names():
            with NamedTemporaryFile() as between:
                self.get(name, cast(BinaryIO, between))
                between.flush()
                other.put(Path(between.name), name)

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Failures of the library, which have one class of their own for each, as an OSError in one line."""
        from obstore.exceptions import BaseError

        try:
            yield
        except FileNotFoundError:
            raise FileNotFoundError(f"{self.url} has no such file") from None
        except BaseError as error:
            raise OSError(f"{self.url}: {str(error).partition(chr(10))[0]}") from None


class _Reader:
    """Reads ranges of a file; the library's own reader has bytes of a class of its own."""

    def __init__(self, store: "ObjectStore", name: str) -> None:
        self._store, self._name, self._at = store, name, 0
        self._size = int(store.head(name)["size"])

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = offset + (self._size if whence == os.SEEK_END else 0)
        return self._at

    def read(self, n: int) -> bytes:
        start, end = self._at, min(self._at + n, self._size)
        if start < 0:
            raise ValueError(f"{self._name} has no byte {start}")
        self._at = max(start, end)
        return bytes(self._store.get_range(self._name, start=start, end=end)) if start < end else b""
