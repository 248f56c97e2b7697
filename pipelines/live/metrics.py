"""Counters of a scorer, for its status file and for operators."""

from dataclasses import dataclass


@dataclass
class ScorerCounters:
    """Counters since the start of the scorer."""

    n_read: int = 0
    n_folded: int = 0
    n_out_of_turn: int = 0
    n_unknown_fields: int = 0
    n_broken_labels: int = 0
    n_late: int = 0
    n_snapshots: int = 0
    n_snapshots_failed: int = 0
