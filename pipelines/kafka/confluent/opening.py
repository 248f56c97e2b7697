"""Opens and closes clients of librdkafka, and explains why opening failed."""

import logging
import time
from collections.abc import Mapping
from concurrent.futures import wait
from contextlib import suppress
from typing import Any

from confluent_kafka import KafkaError, KafkaException, Producer

from pipelines.background import in_background
from pipelines.errors import BrokerError
from pipelines.kafka import login
from pipelines.kafka.confluent.errors import login_error
from pipelines.kafka.confluent.options import config
from pipelines.kafka.port import REQUEST_MS
from pipelines.kafka.server import Server

log = logging.getLogger(__name__)

OPENING_MS = 10_000
CLOSING_S = 2.0
ANY_TOPIC = "__consumer_offsets"
_LOOK_S = 0.02
_SETTINGS: Mapping[str, Any] = {
    "allow.auto.create.topics": False,
    "socket.timeout.ms": REQUEST_MS,
    "socket.nagle.disable": True,
    "socket.keepalive.enable": True,
    "reconnect.backoff.ms": 50,
    "reconnect.backoff.max.ms": 1_000,
    "retry.backoff.ms": 10,
    "retry.backoff.max.ms": 500,
    "log_level": 3,  # errors: a failed try that is repeated is a warning
}


class ClientLog:
    """The log of a client, without the failures to connect: there are dozens a second while a broker is away.

    What they mean is told by the request that fails for it.
    """

    def log(self, level: int, text: str, *values: object) -> None:
        """Called by the client, as the method of a `logging.Logger`."""
        log.log(logging.DEBUG if "FAIL" in values else level, text, *values)


class Reasons:
    """Keeps the reason why connections failed, which librdkafka reports only to a callback.

    It holds no client: a client in a cycle of references would be destroyed late.
    """

    def __init__(self) -> None:
        self.login: KafkaError | None = None
        self.last: KafkaError | None = None

    def __call__(self, error: KafkaError) -> None:
        log.debug("%s", error)
        if login_error("", error):
            self.login = error
        elif error.code() != KafkaError._ALL_BROKERS_DOWN or self.last is None:
            self.last = error


def opened(server: Server, kind: Any, settings: Mapping[str, Any], *, opening_ms: int = OPENING_MS) -> Any:
    """A connected client of `kind` (Consumer, Producer, AdminClient).

    Raises:
        LoginError: Kafka answers, but the login or the TLS settings are wrong.
        BrokerError: Kafka does not answer.
    """
    reasons = Reasons()
    clients = [connecting(server, kind, settings, reasons)]
    until = time.monotonic() + opening_ms / 1000
    while reasons.login is None and time.monotonic() < until:
        with suppress(KafkaException):
            if clients[0].cluster_id(_LOOK_S):
                return clients[0]
        with suppress(KafkaException):
            clients[0].list_topics(ANY_TOPIC, 0)  # without any request, many clients connect only a second later
        clients[0].poll(0)
    closed(clients)
    raise _not_opened(server, reasons)


def connecting(server: Server, kind: Any, settings: Mapping[str, Any], reasons: Reasons) -> Any:
    """A client that connects in the background.

    Raises:
        LoginError: the client rejects its settings.
    """
    try:
        return kind({**config(server), **_SETTINGS, "logger": ClientLog(), **settings, "error_cb": reasons})
    except KafkaException as error:
        raise login.wrong_settings(error.args[0].str()) from error


def closed(clients: list[Any]) -> None:
    """Destroy the clients in the list, which holds their last reference, within 2 s; after that, in the background.

    A producer sends nothing more from now on. Its `close` is not used: it waits for the broker without a limit.
    """
    for client in clients:
        if isinstance(client, Producer):
            with suppress(KafkaException, RuntimeError):
                client.purge(blocking=False)
    wait([in_background(clients.clear)], timeout=CLOSING_S)


def _not_opened(server: Server, reasons: Reasons) -> BrokerError:
    """The error that explains why a client could not be opened."""
    where, protocol, last = f"Kafka at {server.bootstrap}", server.protocol, reasons.last
    if reasons.login is not None and (told := login_error(where, reasons.login)):
        return told
    if last is None:
        return login.no_answer(server.bootstrap)
    if "SSL" in protocol.split("_"):
        if last.code() == KafkaError._SSL or "SSL handshake failed" in last.str():
            return login.handshake_failed(server.bootstrap, where, protocol, last.str())
    elif last.code() == KafkaError._ALL_BROKERS_DOWN:  # connected, and disconnected without any other reason
        if login.speaks_tls(server.bootstrap):
            return login.needs_tls(where, protocol)
        if protocol == "PLAINTEXT":
            return login.closed_early(where, protocol)
    return login.no_answer(server.bootstrap)
