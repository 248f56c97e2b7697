"""Turns messages of librdkafka into records, in whole runs: a step in Python for each message takes too long."""

from collections import deque
from collections.abc import Iterator, Sequence
from itertools import count, groupby, repeat
from operator import itemgetter

from confluent_kafka import Message

from pipelines.kafka.port import MAX_REQUEST_BYTES, Position
from pipelines.record import Received

_BAD_NAME = "the name of a header is not UTF-8"
_stamp = itemgetter(1)  # of (kind, milliseconds)


def runs(messages: Sequence[Message]) -> Iterator[tuple[Position | tuple[None, int], Sequence[Message]]]:
    """Successive messages of one partition; those of (None, -1) are errors of the client itself."""
    at = 0
    for position, group in groupby(zip(map(Message.topic, messages), map(Message.partition, messages), strict=True)):
        n = sum(1 for _ in group)
        yield position, messages[at : at + n]  # type: ignore[misc]
        at += n


def n_consecutive(messages: Sequence[Message], offset: int) -> int:
    """How many messages from the first one on have the offsets `offset`, `offset` + 1, ..."""
    found = list(map(Message.offset, messages))
    if found == list(range(offset, offset + len(found))):
        return len(found)
    return next(n for n, one in enumerate(found) if one != offset + n)


def n_small(messages: Sequence[Message]) -> int:
    """How many messages from the first one on are no larger than a record that is not compressed can be."""
    keys = list(map(Message.key, messages))
    largest = max(max(map(len, messages), default=0), max(map(len, filter(None, keys)), default=0))
    if largest <= MAX_REQUEST_BYTES:
        return len(messages)
    sizes = (max(len(message), len(key or b"")) for message, key in zip(messages, keys, strict=True))
    return next(n for n, size in enumerate(sizes) if size > MAX_REQUEST_BYTES)


def received(messages: Sequence[Message]) -> list[Received]:
    """The records of good messages; one with a bad header name is unreadable, as for every adapter."""
    parts = zip(
        map(Message.topic, messages),
        map(Message.partition, messages),
        map(Message.offset, messages),
        map(_stamp, map(Message.timestamp, messages)),
        map(Message.key, messages),
        map(Message.value, messages),
        repeat(None),
        strict=False,  # the last one has no end
    )
    records: list[Received] = list(map(tuple.__new__, repeat(Received), parts))  # type: ignore[arg-type]
    for place in _bad_names(messages):
        records[place] = Received(*records[place][:3], 0, None, None, _BAD_NAME)
    return records


def _bad_names(messages: Sequence[Message]) -> list[int]:
    """Places of the messages with a header name that is not UTF-8.

    For such a name, `Message.headers` returns a list with a null pointer in it, and its error stays pending. A caller
    in C (here `map`) checks for that and raises a SystemError. A second call would return the list.
    """
    places: list[int] = []
    headers, place = map(Message.headers, messages), count()
    while True:
        try:
            deque(zip(headers, place, strict=False), maxlen=0)
            return places
        except (SystemError, UnicodeDecodeError):
            places.append(next(place))
