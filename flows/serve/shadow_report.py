"""Compares the challenger in shadow with the champion, event by event."""

from dataclasses import dataclass

import numpy as np
import polars as pl

from flows.serve.live_scores import newest_scores
from pipelines.contracts.stream import Stream
from pipelines.errors import UnmaskError
from pipelines.kafka.connection import Connection

MOST = 100_000  # newest scores of the challenger
_EVENT = ["partition", "offset"]


class NoShadowError(UnmaskError):
    """No score of the model is in the shadow topic."""


@dataclass(frozen=True)
class ShadowReport:
    """What the same events were given by both models.

    Args:
        challenger: digest of the model that scored in shadow last.
        champions: digests of the models that served meanwhile.
        n_both: events that both have scored; `n_missing` more only the champion, `n_unmatched` only the challenger.
        rank_correlation: Spearman's, of the scores of both; None if it is not defined.
        both, only_champion, only_challenger: events above the threshold of the one, the other or both.
    """

    challenger: str
    champions: tuple[str, ...]
    n_both: int
    n_missing: int
    n_unmatched: int
    hours: float
    rank_correlation: float | None
    both: int
    only_champion: int
    only_challenger: int

    @property
    def words(self) -> list[str]:
        """The report in lines."""
        names = ", ".join(one[:12] for one in self.champions)
        rank = "not defined" if self.rank_correlation is None else f"{self.rank_correlation:.3f}"
        return [
            f"challenger {self.challenger[:12]} beside {names}: {self.n_both:,} events of {self.hours:.1f} h",
            f"  not scored in shadow: {self.n_missing:,}; only in shadow: {self.n_unmatched:,}",
            f"  rank correlation of the scores: {rank}",
            f"  alerts: both {self.both:,}, only the champion {self.only_champion:,}, only the challenger "
            f"{self.only_challenger:,}",
        ]


def shadow_report(
    connection: Connection, stream: Stream, *, model: str | None = None, most: int = MOST
) -> ShadowReport:
    """Compare the newest scores of a model in shadow with those published for the same events.

    Args:
        model: digest; by default of the model that scored in shadow last.

    Raises:
        NoShadowError: it has scored nothing in shadow.
    """
    shadow = newest_scores(connection, stream, most=most, kind="shadow")
    if not len(shadow):
        raise NoShadowError(f"{stream.topic('shadow')} is empty; let a model score in shadow: `unmask shadow DIGEST`")
    challenger = model or str(shadow.sort("arrival")["model"][-1])
    mine = shadow.filter(pl.col("model") == challenger).unique(_EVENT, keep="last")  # at least once: perhaps twice
    since = mine["arrival"].min()
    if since is None:
        raise NoShadowError(f"model {challenger[:12]} has not scored in shadow; run `unmask shadow challenger`")
    champion = newest_scores(connection, stream, since=since)  # type: ignore[arg-type]
    visible = champion.group_by("partition").agg(pl.col("offset").max().alias("end"))  # a commit needs a moment
    mine = mine.join(visible, on="partition").filter(pl.col("offset") <= pl.col("end"))
    spans = mine.group_by("partition").agg(pl.col("offset").min().alias("first"), pl.col("offset").max().alias("last"))
    within = champion.join(spans, on="partition").filter(pl.col("offset").is_between("first", "last"))
    paired = within.join(mine, on=_EVENT, suffix="_shadow")
    rank = paired.select(pl.corr("score", "score_shadow", method="spearman")).item() if len(paired) > 1 else None
    one, other = paired["alert"], paired["alert_shadow"]
    arrival_ms = paired["arrival"].dt.epoch("ms").to_numpy()
    return ShadowReport(
        challenger,
        tuple(sorted(set(paired["model"]))),
        n_both=len(paired),
        n_missing=len(within) - len(paired),
        n_unmatched=len(mine) - len(paired),
        hours=float(np.ptp(arrival_ms)) / 3_600_000 if len(paired) else 0.0,
        rank_correlation=None if rank is None or rank != rank else rank,
        both=int((one & other).sum()),
        only_champion=int((one & ~other).sum()),
        only_challenger=int((other & ~one).sum()),
    )
