"""The HTTP server of a scorer: `/metrics`, `/livez` and `/readyz`, in threads of its own."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from flows.serve.monitor import Monitor
from pipelines.errors import UnmaskError

Answer = tuple[int, str, bytes]  # status, content type, body
REQUEST_S = 5.0  # for a client that sends or reads slowly


@contextmanager
def probes(port: int, monitor: Monitor, metrics: Collector) -> Iterator[int]:
    """Serve on a port of all addresses, and yield it; port 0 is any free one.

    Raises:
        UnmaskError: the port cannot be used.
    """
    registry = CollectorRegistry()
    registry.register(metrics)
    ProcessCollector(registry=registry)
    verdicts = {"/livez": lambda: monitor.not_alive, "/readyz": lambda: monitor.not_ready}

    def answer(path: str, accept: str) -> Answer:
        if path == "/metrics":
            encode, content_type = choose_encoder(accept)
            return 200, content_type, encode(registry)
        return _verdict(verdicts.get(path))

    try:
        server = _Server(("", port), _Handler)
    except OSError as error:
        raise UnmaskError(
            f"port {port} of --metrics-port cannot be used ({error.strerror}); choose another one"
        ) from error
    server.answer = answer
    thread = threading.Thread(target=server.serve_forever, args=(0.1,), name="probes", daemon=True)
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    answer: Callable[[str, str], Answer]  # to a path, in a content type that is accepted


def _verdict(why_not: Callable[[], str] | None) -> Answer:
    if why_not is None:
        return 404, "text/plain", b"there are /metrics, /livez and /readyz\n"
    why = why_not()
    return (503 if why else 200), "text/plain; charset=utf-8", f"{why or 'ok'}\n".encode()


class _Handler(BaseHTTPRequestHandler):
    timeout = REQUEST_S
    server: _Server

    def do_GET(self) -> None:
        accept = self.headers.get("Accept") or ""
        status, content_type, body = self.server.answer(self.path.partition("?")[0], accept)
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Requests are not logged."""
