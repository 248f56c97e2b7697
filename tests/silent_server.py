"""A server that accepts connections and never answers."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from flows.local.processes import LOOPBACK


class SilentServer(str):
    """Its URL; `n_asked` counts the connections."""

    n_asked: int


@contextmanager
def listening_in_silence() -> Iterator[SilentServer]:
    """Accept connections until the end of the block."""
    asked: list[socket.socket] = []
    with socket.create_server((LOOPBACK, 0), backlog=256) as listener:
        url = SilentServer(f"http://{LOOPBACK}:{listener.getsockname()[1]}")
        url.n_asked = 0

        def accept() -> None:
            with suppress(OSError):
                while True:
                    asked.append(listener.accept()[0])
                    url.n_asked += 1

        accepting = threading.Thread(target=accept, daemon=True)
        accepting.start()
        yield url
        listener.shutdown(socket.SHUT_RDWR)
        accepting.join()
    for connection in asked:
        connection.close()
