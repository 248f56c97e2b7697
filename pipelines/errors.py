"""All errors that a user can cause, as one tree. Any other error is a bug in Unmask.

UnmaskError
├── StreamFileError      the stream file is wrong: line, value and fix are in the message
├── BrokerError          Kafka cannot be reached, or a topic is misconfigured
│   ├── FencedError      another scorer has taken over this partition
│   ├── LoginError       Kafka answers, but the login or the TLS settings are wrong
│   └── RejectedError    the broker rejects a record permanently: a retry does not help
│       └── TooLargeError    the record exceeds the limit of its topic or the client: a shorter one may succeed
├── LakeError            a table is missing or was written by another program
└── RestoreError         no state can be built that agrees with what was already published
    └── OutboxOverflowError  a partition can be taken over only with a restored state
"""

from collections.abc import Sequence
from typing import NamedTuple


class UnmaskError(Exception):
    """Base of every error that a user can cause and fix."""


class Problem(NamedTuple):
    """One mistake in a stream file.

    Args:
        line: 1-based line number; 0 if the problem concerns the whole file.
        where: the key, e.g. "fields.amount.max"; "" if the problem concerns the whole file.
        value: the value of the key, as text; "" if there is none.
        problem: what is wrong, as a predicate of `where`.
        fix: what to do.
    """

    line: int
    where: str
    value: str
    problem: str
    fix: str

    def __str__(self) -> str:
        said = f"{self.where} {self.problem}".strip()
        return f"{said}; {self.fix}" if self.fix else said


class StreamFileError(UnmaskError):
    """The stream file breaks a rule. `problems` lists every mistake, in the order of the file."""

    def __init__(self, message: str, problems: Sequence[Problem] = ()) -> None:
        super().__init__(message)
        self.problems = tuple(problems)


class BrokerError(UnmaskError):
    """Kafka cannot be reached, or a topic is misconfigured."""


class FencedError(BrokerError):
    """Another producer with the same transactional id has taken over."""


class LoginError(BrokerError):
    """Kafka answers, but the login or the TLS settings are wrong. A retry does not help."""


class RejectedError(BrokerError):
    """The broker rejects a record permanently (too large, not allowed). A retry does not help."""


class TooLargeError(RejectedError):
    """A record is larger than its topic (max.message.bytes) or the client allows."""


class LakeError(UnmaskError):
    """A lake table is missing or unusable."""


class RestoreError(UnmaskError):
    """No state can be built that agrees with what was already published."""


class OutboxOverflowError(RestoreError):
    """A partition cannot be taken over from its outbox, which overflowed: the scorer must restore its state."""


class InternalError(Exception):
    """A bug in Unmask: an invariant was violated. Nothing more is written; exit code 4."""
