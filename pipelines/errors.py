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


class UnmaskError(Exception):
    """Base of every error that a user can cause and fix."""


class StreamFileError(UnmaskError):
    """The stream file breaks a rule."""


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
