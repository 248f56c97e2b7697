"""Scores as lines, judged by the threshold of their model, and many lines in one record."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pipelines.contracts.block import Block
from pipelines.contracts.messages import PACKED, cloudevent_headers
from pipelines.contracts.score_lines import score_lines
from pipelines.contracts.stream import Stream
from pipelines.kafka.port import Message
from pipelines.model import Model

PACKED_BYTES = 500_000  # of a record with many scores; the broker's default limit is 1 MiB


def judged(
    scored: Block, found: NDArray[np.float32], stream: Stream, model: Model
) -> tuple[NDArray[np.bool_], list[str]]:
    """Which scores of a model raise an alert, shape (n,), and the line of each."""
    is_alert = found > np.float32(model.threshold)
    topic, ordered = stream.topic("events"), model.ordered_threshold
    return is_alert, score_lines(scored, found, is_alert, topic=topic, model=model.digest, threshold=ordered)


def packed(lines: Sequence[str], scored: Block, stream: Stream, *, kind: str = "scores") -> list[Message]:
    """Records of many lines each, without a key, about scored events of one partition.

    A record has about `PACKED_BYTES`, or one line.
    """
    ends = np.cumsum([len(line) for line in lines]) // PACKED_BYTES
    starts = np.flatnonzero(np.diff(ends, prepend=-1)).tolist()
    messages = []
    for start, end in zip(starts, [*starts[1:], len(lines)], strict=True):
        partition, first, last = int(scored.partition[start]), scored.offset[start], scored.offset[end - 1]
        headers = cloudevent_headers(PACKED, stream.name, f"{stream.topic('events')}/{partition}/{first}-{last}")
        value = "\n".join(lines[start:end]).encode()
        messages.append(Message(stream.topic(kind), value, None, partition, None, headers))
    return messages
