"""How a client of Kafka is opened, and what its errors mean: none but our own errors leave the Kafka adapter."""

import difflib
import socket
import ssl
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar, cast

from kafka import errors as client
from kafka.net.compat import KafkaNetClient
from kafka.net.manager import KafkaConnectionManager
from kafka.net.sasl import SASL_MECHANISMS
from kafka.net.selector import NetworkSelector
from kafka.protocol.sasl import SaslAuthenticateRequest, SaslHandshakeRequest

from pipelines.errors import BrokerError, LoginError, RejectedError, TooLargeError, UnmaskError

OPENING_MS = 10_000
# request < delivery < transaction: a record gives up before its transaction does.
REQUEST_MS, DELIVERY_MS, TRANSACTION_MS = 5_000, 10_000, 15_000
T = TypeVar("T")
PROTOCOLS = ("PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL")
OPTIONS = frozenset(
    name for name in KafkaConnectionManager.DEFAULT_CONFIG if name.startswith(("security_", "sasl_", "ssl_"))
)
# Sending again what these refuse cures nothing.
_FOR_GOOD = (
    client.InvalidRecordError,
    client.InvalidTopicError,
    client.InvalidTimestampError,
    client.PolicyViolationError,
    client.UnsupportedVersionError,
    client.UnsupportedForMessageFormatError,
    client.UnsupportedCompressionTypeError,
    client.AuthorizationError,
)


@dataclass(frozen=True)
class Connection:
    """Where Kafka is. `options` (security_protocol, sasl_*, ssl_*) go to the client and never show in a repr.

    Raises:
        LoginError: an option is unknown, missing or of no use.
    """

    bootstrap: str
    options: Mapping[str, Any] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        _check_options(self.options)

    def config(self) -> dict[str, Any]:
        return {"bootstrap_servers": self.bootstrap.split(","), **self.options}


@dataclass(frozen=True)
class Shared(Connection):
    """A connection whose questions share one admin client and one consumer, as a take-over asks many; use `with`.

    Readers and writers that are opened under it still have clients of their own. Several threads may ask: one waits for
    the other, from the first to the last record of what it reads.
    """

    lock: threading.RLock = field(default_factory=threading.RLock, repr=False, compare=False)
    _clients: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def of(cls, connection: Connection) -> Self:
        return cls(connection.bootstrap, connection.options)

    def client(self, name: str, make: Callable[[], T]) -> T:
        """The shared one, made at its first use."""
        if name not in self._clients:
            self._clients[name] = make()
        return cast(T, self._clients[name])

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for shared in self._clients.values():
            with suppress(Exception):
                shared.close()


def _check_options(options: Mapping[str, Any]) -> None:
    for name in options:
        if name not in OPTIONS:
            near = difflib.get_close_matches(name, OPTIONS, n=1)
            raise LoginError(f"{name} is no option of the Kafka client" + (f"; {near[0]} is" if near else ""))
    protocol, mechanism = options.get("security_protocol", "PLAINTEXT"), str(options.get("sasl_mechanism"))
    if protocol not in PROTOCOLS:
        raise LoginError(f"KAFKA_SECURITY_PROTOCOL is {protocol!r}; it must be one of {', '.join(PROTOCOLS)}")
    for prefix, wanted in (("sasl_", "SASL"), ("ssl_", "SSL")):
        unused = [name for name in options if name.startswith(prefix)]
        if unused and wanted not in protocol.split("_"):
            variable = f"KAFKA_{unused[0].replace('sasl_plain', 'sasl').upper()}"
            raise LoginError(
                f"{variable} is set, but KAFKA_SECURITY_PROTOCOL is {protocol}, which does not use it; set a protocol "
                f"with {wanted}"
            )
    if protocol.startswith("SASL"):
        if mechanism not in SASL_MECHANISMS:
            names = ", ".join(sorted(SASL_MECHANISMS))
            raise LoginError(f"KAFKA_SASL_MECHANISM is {mechanism}; with {protocol} it must be one of {names}")
        if mechanism == "PLAIN" or mechanism.startswith("SCRAM"):
            for name in ("username", "password"):
                if not options.get(f"sasl_plain_{name}"):
                    raise LoginError(f"KAFKA_SASL_{name.upper()} is missing; {mechanism} needs it")
    file = options.get("ssl_cafile")
    if file is not None and not Path(file).is_file():
        raise LoginError(f"KAFKA_SSL_CAFILE names {file}, which is no file")


class _Manager(KafkaConnectionManager):
    """Keeps why connections failed: kafka-python only logs it, and says that it could not bootstrap.

    A login or a certificate that does not fit ends the opening; other failures are tried again until its end.
    """

    last_error: Exception | None = None
    was_connected = False

    def get_connection(self, *args: Any, **kwargs: Any) -> Any:
        if self.last_error is not None and not self.bootstrapped and _login_error("", self.last_error):
            raise self.last_error
        return super().get_connection(*args, **kwargs)

    async def _build_transport(self, *args: Any, **kwargs: Any) -> Any:
        """A transport that gives what it has read before it says that the other end has hung up."""
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

        conn._send_request = noting  # the broker hangs up right after it has refused a login
        await super()._connect(node, conn, *args, **kwargs)

    def _note_answer(self, answer: Any) -> None:
        if answer.error_code:
            self._note(client.for_code(answer.error_code)(answer))

    def _note(self, outcome: Any) -> None:
        if not isinstance(outcome, Exception):
            self.was_connected = True
        elif self.last_error is None or not _login_error("", self.last_error):
            self.last_error = outcome


def opened(connection: Connection, kind: Any, *, opening_ms: int = OPENING_MS, **config: Any) -> Any:
    """A client of `kind` (consumer, producer, admin), connected.

    Raises:
        LoginError: Kafka is there, but the login or the TLS settings do not fit.
        BrokerError: Kafka does not answer.
    """
    made: list[Any] = []

    def net_client(**configs: Any) -> Any:
        net = NetworkSelector(**configs)
        made.append(KafkaNetClient(net=net, manager=_Manager(net, **configs), **configs))
        return made[0]

    try:
        return kind(kafka_client=net_client, bootstrap_timeout_ms=opening_ms, **connection.config(), **config)
    except Exception as error:
        for unused in made:
            with suppress(Exception):
                unused.close()
                unused._net.stop()
        if not is_from_client(error):
            raise
        raise _not_opened(connection, error, made[0]._manager if made else None) from error


def _not_opened(connection: Connection, error: Exception, manager: _Manager | None) -> BrokerError:
    where = f"Kafka at {connection.bootstrap}"
    protocol = connection.options.get("security_protocol", "PLAINTEXT")
    cause = error
    if (
        manager is not None
        and isinstance(manager.last_error, Exception)
        and isinstance(error, client.KafkaTimeoutError)
    ):
        cause = manager.last_error
    told = _login_error(where, cause)
    if told is not None:
        return told
    if isinstance(cause, client.KafkaConfigurationError | ValueError):
        return LoginError(f"the Kafka client refuses its settings: {cause}")
    uses_tls = "SSL" in protocol.split("_")
    handshake = "Handshake failed" in str(cause)
    if uses_tls and handshake:
        if speaks_tls(connection.bootstrap):
            return LoginError(f"{where} breaks off the TLS handshake ({cause}); check KAFKA_SSL_CAFILE")
        return LoginError(f"{where} does not speak TLS on this port; check KAFKA_SECURITY_PROTOCOL (now {protocol})")
    if not uses_tls and not isinstance(cause, OSError) and speaks_tls(connection.bootstrap):
        return LoginError(f"{where} speaks TLS on this port; check KAFKA_SECURITY_PROTOCOL (now {protocol})")
    if manager is not None and manager.was_connected and protocol in ("PLAINTEXT", "SSL"):
        return BrokerError(
            f"{where} closes the connection before it answers; if it demands a login, check KAFKA_SECURITY_PROTOCOL "
            f"(now {protocol})"
        )
    return BrokerError(f"no Kafka answers at {connection.bootstrap}")


def _login_error(where: str, error: BaseException) -> LoginError | None:
    """What an error says about login and TLS, None where it says nothing."""
    said = str(error)
    if isinstance(error, client.SaslAuthenticationFailedError):
        return LoginError(f"{where} refuses the login; check KAFKA_SASL_USERNAME and KAFKA_SASL_PASSWORD")
    if isinstance(error, client.UnsupportedSaslMechanismError):
        return LoginError(f"{where} does not know this SASL mechanism; check KAFKA_SASL_MECHANISM")
    if isinstance(error, client.IllegalSaslStateError):
        return LoginError(f"{where} takes no login on this port; check KAFKA_SECURITY_PROTOCOL")
    if "Hostname mismatch" in said or "IP address mismatch" in said:
        return LoginError(f"{where} shows a certificate for another host name; check KAFKA_BOOTSTRAP_SERVERS")
    if "CERTIFICATE_VERIFY_FAILED" in said:
        return LoginError(f"{where} shows a certificate that is not trusted; check KAFKA_SSL_CAFILE")
    return None


def speaks_tls(bootstrap: str, *, timeout_s: float = 2.0) -> bool:
    """Whether the first server named answers a TLS handshake, whatever its certificate."""
    host, _, port = bootstrap.split(",")[0].rpartition(":")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        with (
            socket.create_connection((host.strip("[]"), int(port)), timeout=timeout_s) as plain,
            context.wrap_socket(plain, server_hostname=host),
        ):
            return True
    except (OSError, ValueError) as error:
        return "ALERT" in str(getattr(error, "reason", ""))


@contextmanager
def client_errors(doing: str) -> Iterator[None]:
    """Turn what the client raises within the block into a `BrokerError` that begins with `doing`."""
    try:
        yield
    except Exception as error:
        if not is_from_client(error):
            raise
        raise broker_error(doing, error) from error


def broker_error(doing: str, error: BaseException) -> BrokerError:
    """What an error of the client means to us."""
    if told := _login_error("Kafka", error):
        return told
    said = f"{doing}: {str(error) or type(error).__name__}"
    if isinstance(error, client.AuthorizationError):
        return RejectedError(f"{said}; grant this user the right on the topic or id that is named")
    if isinstance(error, client.MessageSizeTooLargeError | client.RecordListTooLargeError):
        return TooLargeError(f"{said}; raise its topic's max.message.bytes")
    return RejectedError(said) if isinstance(error, _FOR_GOOD) else BrokerError(said)


def is_from_client(error: BaseException) -> bool:
    """Whether the client raised it, or the machine below it; what our own code raises is left alone."""
    if isinstance(error, UnmaskError | MemoryError):
        return False
    if isinstance(error, client.KafkaError | OSError):
        return True
    modules = [str(frame.f_globals.get("__name__")) for frame, _ in traceback.walk_tb(error.__traceback__)]
    return any(name.startswith("kafka.") for name in modules) and not modules[-1].startswith("pipelines.")
