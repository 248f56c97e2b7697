"""Translates errors of kafka-python, so that the adapter raises only errors of Unmask."""

import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from kafka import errors as client

from pipelines.errors import BrokerError, LoginError, RejectedError, TooLargeError, UnmaskError
from pipelines.kafka import login

# Permanent errors: a retry does not help.
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


@contextmanager
def client_errors(doing: str) -> Iterator[None]:
    """Convert errors that the client raises in the block to a `BrokerError` that begins with `doing`."""
    try:
        yield
    except Exception as error:
        if not is_from_client(error):
            raise
        raise broker_error(doing, error) from error


def broker_error(doing: str, error: BaseException) -> BrokerError:
    """The error of Unmask for an error of the client."""
    if told := login_error("Kafka", error):
        return told
    said = f"{doing}: {str(error) or type(error).__name__}"
    if isinstance(error, client.AuthorizationError):
        return RejectedError(f"{said}; grant this user the permission on the named topic or id")
    if isinstance(error, client.MessageSizeTooLargeError | client.RecordListTooLargeError):
        return TooLargeError(f"{said}; raise max.message.bytes of its topic")
    return RejectedError(said) if isinstance(error, _FOR_GOOD) else BrokerError(said)


def is_from_client(error: BaseException) -> bool:
    """Whether the client or the operating system raised it, not our own code."""
    if isinstance(error, UnmaskError | MemoryError):
        return False
    if isinstance(error, client.KafkaError | OSError):
        return True
    modules = [str(frame.f_globals.get("__name__")) for frame, _ in traceback.walk_tb(error.__traceback__)]
    return any(name.startswith("kafka.") for name in modules) and not modules[-1].startswith("pipelines.")


def login_error(where: str, error: BaseException) -> LoginError | None:
    """The LoginError for an error of login or TLS; None if it is about something else."""
    said = str(error)
    if isinstance(error, client.SaslAuthenticationFailedError):
        return LoginError(f"{where} {login.REJECTED}")
    if isinstance(error, client.UnsupportedSaslMechanismError):
        return LoginError(f"{where} {login.UNKNOWN_MECHANISM}")
    if isinstance(error, client.IllegalSaslStateError):
        return LoginError(f"{where} {login.NO_LOGIN_HERE}")
    if "Hostname mismatch" in said or "IP address mismatch" in said:
        return LoginError(f"{where} {login.OTHER_HOST}")
    if "CERTIFICATE_VERIFY_FAILED" in said:
        return LoginError(f"{where} {login.NOT_TRUSTED}")
    return None
