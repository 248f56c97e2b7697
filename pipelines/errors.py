"""Every error a user can cause, as one tree; all others are our own bugs.

UnmaskError
├── StreamFileError      the stream file is wrong: line, value and fix are in the message
├── BrokerError          Kafka cannot be reached, or a topic is not as it must be
│   ├── FencedError      another scorer has taken over this partition
│   ├── LoginError       Kafka is there, but the login or the TLS settings do not fit
│   └── RejectedError    the broker refuses a record for good: sending it again cures nothing
│       └── TooLargeError    it is larger than its topic or the client takes: a shorter one may go out
├── LakeError            a table is missing or was written by something else
└── RestoreError         no state can be built that agrees with what was already published
"""

from collections.abc import Sequence
from typing import NamedTuple


class UnmaskError(Exception):
    """Base of every error that a user can cause and fix."""


class Problem(NamedTuple):
    """One mistake in a stream file.

    Args:
        line: 1-based; 0 where it is about the whole file.
        where: the key, e.g. "fields.amount.max"; "" where it is about the whole file.
        value: what stands there, as text; "" where nothing does.
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
    """Kafka cannot be reached, or a topic is not as it must be."""


class FencedError(BrokerError):
    """Another producer with the same transactional id has taken over."""


class LoginError(BrokerError):
    """Kafka is there, but the login or the TLS settings do not fit; trying again cures nothing."""


class RejectedError(BrokerError):
    """The broker refuses a record for good (too large, not allowed): sending it again cures nothing."""


class TooLargeError(RejectedError):
    """A record is larger than its topic (max.message.bytes) or the client takes."""


class LakeError(UnmaskError):
    """A lake table is missing or unusable."""


class RestoreError(UnmaskError):
    """No state can be built that agrees with what was already published."""


class InternalError(Exception):
    """Our own defect: what must never happen did. Nothing is written any more; exit code 4."""
