"""Opens clients of kafka-python, and explains why opening failed."""

from contextlib import suppress
from typing import Any

from kafka import errors as client
from kafka.net.compat import KafkaNetClient
from kafka.net.manager import KafkaConnectionManager
from kafka.net.selector import NetworkSelector
from kafka.protocol.sasl import SaslAuthenticateRequest, SaslHandshakeRequest

from pipelines.errors import BrokerError, LoginError
from pipelines.kafka import login
from pipelines.kafka.kafka_python.errors import is_from_client, login_error
from pipelines.kafka.server import Server

OPENING_MS = 10_000


class _Manager(KafkaConnectionManager):
    """Keeps the reason why connections failed. kafka-python only logs it and raises a generic bootstrap error.

    A wrong login or certificate ends the opening at once; other failures are retried until the timeout.
    """

    last_error: Exception | None = None
    was_connected = False

    def get_connection(self, *args: Any, **kwargs: Any) -> Any:
        if self.last_error is not None and not self.bootstrapped and login_error("", self.last_error):
            raise self.last_error
        return super().get_connection(*args, **kwargs)

    async def _build_transport(self, *args: Any, **kwargs: Any) -> Any:
        """A transport that delivers the bytes already read before it reports that the connection was closed."""
        transport = await super()._build_transport(*args, **kwargs)
        receive = transport._sock_recv

        def data_first() -> tuple[bytes, Exception | None]:
            data, error = receive()
            return data, None if data else error

        transport._sock_recv = data_first
        return transport

    async def _connect(self, node: Any, conn: Any, *args: Any, **kwargs: Any) -> None:
        conn.init_future.add_both(self._note)
        send = conn._send_request

        def noting(request: Any, *args: Any, **kwargs: Any) -> Any:
            future = send(request, *args, **kwargs)
            if isinstance(request, SaslHandshakeRequest | SaslAuthenticateRequest):
                future.add_callback(self._note_answer)
            return future

        conn._send_request = noting  # the broker closes the connection right after it has rejected a login
        await super()._connect(node, conn, *args, **kwargs)

    def _note_answer(self, answer: Any) -> None:
        if answer.error_code:
            self._note(client.for_code(answer.error_code)(answer))

    def _note(self, outcome: Any) -> None:
        if not isinstance(outcome, Exception):
            self.was_connected = True
        elif self.last_error is None or not login_error("", self.last_error):
            self.last_error = outcome


def opened(server: Server, kind: Any, *, opening_ms: int = OPENING_MS, **config: Any) -> Any:
    """A connected client of `kind` (consumer, producer, admin).

    Raises:
        LoginError: Kafka answers, but the login or the TLS settings are wrong.
        BrokerError: Kafka does not answer.
    """
    made: list[Any] = []

    def net_client(**configs: Any) -> Any:
        net = NetworkSelector(**configs)
        made.append(KafkaNetClient(net=net, manager=_Manager(net, **configs), **configs))
        return made[0]

    try:
        servers = server.bootstrap.split(",")
        return kind(
            kafka_client=net_client,
            bootstrap_servers=servers,
            bootstrap_timeout_ms=opening_ms,
            **server.options,
            **config,
        )
    except Exception as error:
        for unused in made:
            with suppress(Exception):
                unused.close()
                unused._net.stop()
        if not is_from_client(error):
            raise
        raise _not_opened(server, error, made[0]._manager if made else None) from error


def _not_opened(server: Server, error: Exception, manager: _Manager | None) -> BrokerError:
    """The error that explains why a client could not be opened."""
    where, protocol = f"Kafka at {server.bootstrap}", server.protocol
    cause = error
    if manager is not None and manager.last_error is not None and isinstance(error, client.KafkaTimeoutError):
        cause = manager.last_error
    found = login_error(where, cause) or _wrong_setting(server, where, cause)
    if found is not None:
        return found
    if manager is not None and manager.was_connected and protocol in ("PLAINTEXT", "SSL"):
        return login.closed_early(where, protocol)
    return login.no_answer(server.bootstrap)


def _wrong_setting(server: Server, where: str, cause: Exception) -> LoginError | None:
    """The error about a wrong setting (TLS on one side only, or rejected by the client); None if it is not that."""
    if isinstance(cause, client.KafkaConfigurationError | ValueError):
        return login.wrong_settings(cause)
    if "SSL" not in server.protocol.split("_"):
        if not isinstance(cause, OSError) and login.speaks_tls(server.bootstrap):
            return login.needs_tls(where, server.protocol)
    elif "Handshake failed" in str(cause):
        return login.handshake_failed(server.bootstrap, where, server.protocol, cause)
    return None
