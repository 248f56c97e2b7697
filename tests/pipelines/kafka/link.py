"""A broker with listeners of a test's own, and a link to it that can be cut, or swallow everything in silence."""

import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import pytest

from flows.local import kafka_server, processes
from flows.local.kafka_server import Broker, start_broker


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
        said = dict(line.split("=", 1) for line in target.read_text().splitlines())
        for name, listener in listeners.items():
            said["listeners"] += f",{name}://127.0.0.1:{listener.port}"
            said["advertised.listeners"] += f",{name}://127.0.0.1:{listener.advertised_port}"
            said["listener.security.protocol.map"] += f",{name}:{listener.protocol}"
        said |= settings or {}
        target.write_text("".join(f"{name}={value}\n" for name, value in said.items()))
        return target

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(kafka_server, "_write_settings", with_listeners)
        own = start_broker(folder, log=lambda line: None)
    try:
        yield own
    finally:
        own.stop()


class Link:
    """A TCP way to `target` that a test can cut (connections end, new ones are refused) or let swallow all bytes."""

    def __init__(self, port: int, target: int) -> None:
        self._target = target
        self._lock = threading.Lock()
        self._sockets: set[socket.socket] = set()
        self._cut = self._swallowing = self._closed = False
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

    def swallow(self) -> None:
        """Take bytes and new connections, pass nothing on."""
        self._swallowing = True

    def mend(self) -> None:
        """As before; connections that lost bytes are ended."""
        with self._lock:
            if self._swallowing:
                self._end_all()
            self._cut = self._swallowing = False

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
            for source, sink in ((near, far), (far, near)):
                threading.Thread(target=self._pass_on, args=(source, sink), daemon=True).start()

    def _pass_on(self, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 16):
                if not self._swallowing:
                    sink.sendall(data)
        for one in (source, sink):
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
