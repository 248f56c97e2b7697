"""Translates errors of librdkafka, so that the adapter raises only errors of Unmask."""

from collections.abc import Iterator
from contextlib import contextmanager

from confluent_kafka import KafkaError, KafkaException

from pipelines.errors import BrokerError, FencedError, LoginError, RejectedError, TooLargeError
from pipelines.kafka import login

_NOT_ALLOWED = {
    KafkaError.TOPIC_AUTHORIZATION_FAILED,
    KafkaError.GROUP_AUTHORIZATION_FAILED,
    KafkaError.CLUSTER_AUTHORIZATION_FAILED,
    KafkaError.TRANSACTIONAL_ID_AUTHORIZATION_FAILED,
}
_TOO_LARGE = {KafkaError.MSG_SIZE_TOO_LARGE, KafkaError.RECORD_LIST_TOO_LARGE}
# Permanent errors: a retry does not help.
_FOR_GOOD = {
    KafkaError.INVALID_RECORD,
    KafkaError.TOPIC_EXCEPTION,
    KafkaError.INVALID_TIMESTAMP,
    KafkaError.POLICY_VIOLATION,
    KafkaError.UNSUPPORTED_VERSION,
    KafkaError.UNSUPPORTED_FOR_MESSAGE_FORMAT,
    KafkaError.UNSUPPORTED_COMPRESSION_TYPE,
}
_FENCED = {KafkaError._FENCED, KafkaError.PRODUCER_FENCED, KafkaError.INVALID_PRODUCER_EPOCH}


@contextmanager
def client_errors(doing: str) -> Iterator[None]:
    """Convert errors that the client raises in the block to a `BrokerError` that begins with `doing`."""
    try:
        yield
    except (KafkaException, SystemError) as error:
        raise broker_error(doing, of_client(error)) from error


def of_client(error: KafkaException | SystemError) -> KafkaError:
    """The client's error in an exception.

    confluent-kafka raises a fatal error (fencing) while it serves callbacks, and goes on to serve others: if one of
    them calls a function, the fatal error is only the cause of a SystemError.
    """
    cause = error.__cause__ if isinstance(error, SystemError) else error
    if not isinstance(cause, KafkaException):
        raise error
    return cause.args[0]


def broker_error(doing: str, error: KafkaError) -> BrokerError:
    """The error of Unmask for an error of the client."""
    if told := login_error("Kafka", error):
        return told
    code, said = error.code(), f"{doing}: {error.str()}"
    if code in _FENCED:
        return FencedError(f"{doing}: another producer has taken over ({error.name()})")
    if code in _NOT_ALLOWED:
        return RejectedError(f"{said}; grant this user the permission on the named topic or id")
    if code in _TOO_LARGE:
        return TooLargeError(f"{said}; raise max.message.bytes of its topic")
    return RejectedError(said) if code in _FOR_GOOD else BrokerError(said)


def login_error(where: str, error: KafkaError) -> LoginError | None:
    """The LoginError for an error of login or TLS; None if it is about something else."""
    code, said = error.code(), error.str()
    if code == KafkaError._AUTHENTICATION:
        if "Unsupported SASL mechanism" in said:
            return LoginError(f"{where} {login.UNKNOWN_MECHANISM}")
        if "not valid in current SASL state" in said:
            return LoginError(f"{where} {login.NO_LOGIN_HERE}")
        return LoginError(f"{where} {login.REJECTED}")
    if code == KafkaError._SSL and "hostname mismatch" in said.lower():
        return LoginError(f"{where} {login.OTHER_HOST}")
    if code == KafkaError._SSL and "certificate verify failed" in said:
        return LoginError(f"{where} {login.NOT_TRUSTED}")
    return None
