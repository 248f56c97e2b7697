"""A broker with listeners of a test's own, and a link to it that can be cut, or swallow everything in silence."""

import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import pytest

from flows.local import kafka_server, processes
from flows.local.kafka_server import Broker, start_broker
from tests.patience import HANG_S

PRODUCE, END_TXN = 0, 26  # keys of requests in Kafka's protocol


class Listener(NamedTuple):
    """Where a broker listens, and where it says that it does."""

    protocol: str
    port: int
    advertised_port: int


@contextmanager
def broker_with(
    folder: Path, listeners: Mapping[str, Listener], settings: Mapping[str, str] | None = None
) -> Iterator[Broker]:
    """A broker of its own with more listeners (name -> where); `bootstrap` is its plain one."""
    plain = kafka_server._write_settings

    def with_listeners(folder: Path, port: int) -> Path:
        target = plain(folder, port)
        said = settings_in(target)
        for name, listener in listeners.items():
            said["listeners"] += f",{name}://127.0.0.1:{listener.port}"
            said["advertised.listeners"] += f",{name}://127.0.0.1:{listener.advertised_port}"
            said["listener.security.protocol.map"] += f",{name}:{listener.protocol}"
        return with_settings(target, said | dict(settings or {}))

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(kafka_server, "_write_settings", with_listeners)
        own = start_broker(folder, log=lambda line: None)
    try:
        yield own
    finally:
        own.stop()


def settings_in(file: Path) -> dict[str, str]:
    """The settings of a broker."""
    return dict(line.split("=", 1) for line in file.read_text().splitlines())


def with_settings(file: Path, changed: Mapping[str, str]) -> Path:
    """Change settings of a broker in its file; returns the file."""
    said = settings_in(file) | dict(changed)
    file.write_text("".join(f"{name}={value}\n" for name, value in said.items()))
    return file


class HeldCommit:
    """A commit (EndTxn) that is late: it reaches the broker in the middle of the next transaction of its id.

    The link takes the request, and cuts the client's connection (`is_cut`) or leaves it without any answer. The broker
    gets it, on the connection that it was sent on, when the first records of a later transaction are stored and
    before its next request.

    Args:
        then: called when the broker has answered it, before anything else of that transaction passes.
    """

    def __init__(self, transactional_id: str, *, is_cut: bool, then: Callable[[], None]) -> None:
        self._id, self._is_cut, self._then = transactional_id.encode(), is_cut, then
        self._way: socket.socket | None = None
        self._request = b""
        self._is_open = False  # the later transaction
        self._answered = threading.Event()
        self.is_taken = self.is_delivered = False
        self.error_code: int | None = None

    def takes(self, frame: bytes, near: socket.socket, far: socket.socket) -> bool:
        """Take the first commit; give it to the broker before the second request of a later transaction."""
        if self._id not in frame or self.is_delivered:
            return False
        if not self.is_taken and _api(frame) == END_TXN:
            self.is_taken, self._way, self._request = True, far, frame
            if self._is_cut:
                _shut(near)
            return True
        if self._is_open:
            assert self._way is not None
            self.is_delivered = True
            self._way.sendall(self._request)
            assert self._answered.wait(HANG_S), "the broker did not answer the late commit"
            self._then()
        return False

    def has_passed(self, frame: bytes) -> None:
        """See records of a later transaction go by."""
        if self.is_taken and not self._is_open and _api(frame) == PRODUCE and self._id in frame:
            time.sleep(0.3)  # they are stored, on any machine but the slowest
            self._is_open = True

    def takes_answer(self, frame: bytes, far: socket.socket) -> bool:
        """Keep the broker's answer to the late commit."""
        if far is not self._way:
            return False
        is_flexible = int.from_bytes(self._request[6:8], "big") >= 3
        self.error_code = int.from_bytes(frame[12 + is_flexible :][:2], "big", signed=True)
        self._answered.set()
        return True


def _api(frame: bytes) -> int:
    return int.from_bytes(frame[4:6], "big")


class Link:
    """A TCP way to `target` that a test can cut (connections end, new ones are refused) or let swallow all bytes."""

    def __init__(self, port: int, target: int) -> None:
        self._target = target
        self._lock = threading.Lock()
        self._sockets: set[socket.socket] = set()
        self._cut = self._closed = False
        self._swallowing: frozenset[str] = frozenset()
        self._held: HeldCommit | None = None
        self._server = socket.create_server(("127.0.0.1", port))
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def is_cut(self) -> bool:
        return self._cut

    def cut(self) -> None:
        """End every connection, and refuse new ones."""
        with self._lock:
            self._cut = True
            self._end_all()

    def swallow(self, *ways: str) -> None:
        """Take bytes and new connections, pass nothing on: no "requests", no "answers", or neither (by default)."""
        self._swallowing = frozenset(ways or ("requests", "answers"))

    def mend(self) -> None:
        """As before; connections that lost bytes are ended."""
        with self._lock:
            if self._swallowing:
                self._end_all()
            self._cut, self._swallowing = False, frozenset()

    def hold(self, commit: HeldCommit | None) -> None:
        """Hold the next commit of its transactional id; None is as before."""
        self._held = commit

    def close(self) -> None:
        with self._lock:
            self._closed = True
            self._end_all()
            self._server.close()

    def _end_all(self) -> None:
        for one in self._sockets:
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()
        self._sockets.clear()

    def _accept(self) -> None:
        while not self._closed:
            try:
                near, _ = self._server.accept()
            except OSError:
                return
            with self._lock:
                if self._cut:
                    near.close()
                    continue
                try:
                    far = socket.create_connection(("127.0.0.1", self._target), timeout=5)
                except OSError:
                    near.close()
                    continue
                far.settimeout(None)
                self._sockets |= {near, far}
            for pass_on in (self._pass_requests, self._pass_answers):
                threading.Thread(target=pass_on, args=(near, far), daemon=True).start()

    def _pass_requests(self, near: socket.socket, far: socket.socket) -> None:
        with suppress(OSError):
            while frame := _frame(near):
                if "requests" in self._swallowing:
                    continue
                held = self._held
                if held is not None and held.takes(frame, near, far):
                    return  # what goes to the broker here is no business of the client any more
                far.sendall(frame)
                if held is not None:
                    held.has_passed(frame)
        _shut(near, far)

    def _pass_answers(self, near: socket.socket, far: socket.socket) -> None:
        with suppress(OSError):
            while frame := _frame(far):
                if "answers" in self._swallowing:
                    continue
                held = self._held
                if held is None or not held.takes_answer(frame, far):
                    near.sendall(frame)
        _shut(near, far)


def _frame(source: socket.socket) -> bytes:
    """The next request or answer, with its length before it; empty at the end of the connection."""
    head = _exactly(source, 4)
    return head and head + _exactly(source, int.from_bytes(head, "big"))


def _exactly(source: socket.socket, size: int) -> bytes:
    parts, missing = [], size
    while missing:
        data = source.recv(min(missing, 1 << 16))
        if not data:
            return b""
        parts.append(data)
        missing -= len(data)
    return b"".join(parts)


def _shut(*sockets: socket.socket) -> None:
    for one in sockets:
        with suppress(OSError):
            one.shutdown(socket.SHUT_RDWR)


class Linked(NamedTuple):
    """A broker, to be reached directly (`broker.bootstrap`) and over a link (`bootstrap`)."""

    broker: Broker
    link: Link
    bootstrap: str


@contextmanager
def linked_broker(folder: Path) -> Iterator[Linked]:
    """A broker of its own behind a link; clients of `bootstrap` know no other way to it."""
    port, way = processes.free_port(), processes.free_port()
    with broker_with(folder, {"LINK": Listener("PLAINTEXT", port, way)}) as own:
        link = Link(way, port)
        try:
            yield Linked(own, link, f"127.0.0.1:{way}")
        finally:
            link.close()
