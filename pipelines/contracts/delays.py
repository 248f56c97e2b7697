"""What is told about a partition whose scores come late, and what its progress record remembers of it."""

from typing import Literal

import msgspec


class OpenDelay(msgspec.Struct, frozen=True, array_like=True):
    """A delay that was told and is not over: the arrival of the oldest waiting event then, and the highest lag, ms."""

    since_ms: int
    highest_ms: int


class ScoringDelayed(msgspec.Struct, frozen=True, kw_only=True):
    """A message of `<stream>.alerts` with `kind` "scoring_delayed": scores of a partition come late, or no longer.

    One is published when the lag passes the bound of the stream file, and one, `recovered`, when it is below half of
    it again; each exactly once. Idempotency key: `topic`, `partition`, `since` and `recovered`.

    - `since`: arrival of the oldest event without a score when the bound was passed.
    - `at`: when this message was written.
    - `lag_ms`, `highest_lag_ms`: age of the oldest event without a score now, and the highest since then.
    - `next_offset`: the first event of the partition without a score.
    """

    kind: Literal["scoring_delayed"] = "scoring_delayed"
    topic: str
    partition: int
    since: str
    at: str
    lag_ms: int
    highest_lag_ms: int
    bound_ms: int
    recovered: bool
    next_offset: int
