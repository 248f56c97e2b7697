"""Every error a user can cause, as one tree; all others are our own bugs.

UnmaskError
├── StreamFileError      the stream file is wrong: line, value and mend are in the message
├── BrokerError          Kafka cannot be reached, or a topic is not as it must be
│   └── FencedError      another scorer has taken over this partition
├── LakeError            a table is missing or was written by something else
└── RestoreError         no state can be built that agrees with what was already published
"""


class UnmaskError(Exception):
    """Base of every error that a user can cause and mend."""


class StreamFileError(UnmaskError):
    """The stream file breaks a rule."""


class BrokerError(UnmaskError):
    """Kafka cannot be reached, or a topic is not as it must be."""


class FencedError(BrokerError):
    """Another producer with the same transactional id has taken over."""


class LakeError(UnmaskError):
    """A lake table is missing or unusable."""


class RestoreError(UnmaskError):
    """No state can be built that agrees with what was already published."""
