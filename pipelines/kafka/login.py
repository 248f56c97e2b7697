"""Why a client could not be opened: the words of every adapter, and what the server itself can be asked."""

import socket
import ssl

from pipelines.errors import BrokerError, LoginError

REJECTED = "rejects the login; check KAFKA_SASL_USERNAME and KAFKA_SASL_PASSWORD"
UNKNOWN_MECHANISM = "does not support this SASL mechanism; check KAFKA_SASL_MECHANISM"
NO_LOGIN_HERE = "does not accept a login on this port; check KAFKA_SECURITY_PROTOCOL"
OTHER_HOST = "presents a certificate for another host name; check KAFKA_BOOTSTRAP_SERVERS"
NOT_TRUSTED = "presents a certificate that is not trusted; check KAFKA_SSL_CAFILE"


def wrong_settings(why: object) -> LoginError:
    """The client itself rejects its settings."""
    return LoginError(f"the Kafka client rejects its settings: {why}")


def needs_tls(where: str, protocol: str) -> LoginError:
    """TLS on the side of the server only."""
    return LoginError(f"{where} uses TLS on this port; check KAFKA_SECURITY_PROTOCOL (now {protocol})")


def handshake_failed(bootstrap: str, where: str, protocol: str, why: object) -> LoginError:
    """TLS on our side only, or a handshake that the server aborts."""
    if speaks_tls(bootstrap):
        return LoginError(f"{where} aborts the TLS handshake ({why}); check KAFKA_SSL_CAFILE")
    return LoginError(f"{where} does not use TLS on this port; check KAFKA_SECURITY_PROTOCOL (now {protocol})")


def closed_early(where: str, protocol: str) -> BrokerError:
    """The server accepts connections and closes them."""
    return BrokerError(
        f"{where} closes the connection before it answers; if it requires a login, check KAFKA_SECURITY_PROTOCOL "
        f"(now {protocol})"
    )


def no_answer(bootstrap: str) -> BrokerError:
    """Nobody answers."""
    return BrokerError(f"no Kafka answers at {bootstrap}")


def speaks_tls(bootstrap: str, *, timeout_s: float = 2.0) -> bool:
    """Whether the first named server answers a TLS handshake, regardless of its certificate."""
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
