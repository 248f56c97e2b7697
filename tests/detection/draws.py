"""Draws of few labels on a stream: the fine-tuned score beside the label-free score that it starts from.

    python -m tests.detection.draws --data FOLDER --stream handbook --train-end 2018-06-30 --test-end 2018-07-31
    python -m tests.detection.draws --stream payments                       # the simulated payments of the demo

A draw knows the labels of random members of the key entity: as many members as it takes for the wanted number of
frauds, one maturity before the end of the training period. All other labels are hidden, from label-fed columns too.
Prints one line for each number of frauds; exit code 1 if more than 1 draw in 20 is below the label-free score.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
import polars as pl
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score

from flows.streams import shipped
from flows.training_data import offline_table
from models.fit.finetune import FinetuneConfig, finetune
from models.fit.pretrain import PretrainConfig, Pretrained, pretrain
from models.net.batches import surprises_of
from models.table import Table
from pipelines.contracts.stream import DAY_MS, Stream
from pipelines.features.offline import times_of
from pipelines.play.simulate import payments, read_folder
from tests.bench.tables import day_ms

N_FRAUDS = (5, 10, 20, 50, 200)
N_DRAWS = 20


def simulated(seed: int) -> pl.DataFrame:
    """Payments as the demo simulates them: about 100,000 within 60 days."""
    return payments(seed=seed, n_customers=850, n_terminals=1_200, days=60, start=datetime(2026, 1, 1, tzinfo=UTC))


class Result(NamedTuple):
    """Average precision on later events."""

    n_frauds: int
    label_free: float
    fine_tuned: float


@dataclass
class Draws:
    """A stream split at a time, with an encoder pretrained on what comes before.

    Args:
        frame: events with their labels, by rising time.
        stream: their stream.
        train_end_ms, test_end_ms: ends of the training and of the test period.
        warm_up_ms: start of the training period, after the first event.
    """

    frame: pl.DataFrame
    stream: Stream
    train_end_ms: int
    test_end_ms: int
    warm_up_ms: int = 15 * DAY_MS

    def __post_init__(self) -> None:
        assert self.stream.labels is not None
        labels = msgspec.structs.replace(self.stream.labels, reports="both")
        self.stream = msgspec.structs.replace(self.stream, labels=labels)
        hidden = self.frame.with_columns(pl.lit(None).alias(labels.column))
        table = offline_table(hidden, self.stream)
        self.train, self.test = self._periods(table)
        self.label = self.frame[labels.column].to_numpy().astype(np.int8)
        self.known_until_ms = self.train_end_ms - labels.maturity_ms
        self.pretrained: Pretrained = pretrain(table.take(self.train), config=PretrainConfig(), seed=0)
        test, rules = table.take(self.test), self.pretrained.rules
        nats = surprises_of(self.pretrained.student, rules.coding.cells(test))
        # not the score: in float32 it has ties, which change its average precision by up to 2e-5
        self.label_free = self._ap(rules.evidence_of(nats, np.asarray(test.numeric)))

    def _periods(self, table: Table) -> tuple[slice, slice]:
        edges = (int(table.time_ms[0]) + self.warm_up_ms, self.train_end_ms, self.test_end_ms)
        begin, middle, end = (int(row) for row in np.searchsorted(table.time_ms, edges))
        return slice(begin, middle), slice(middle, end)

    def _ap(self, scores: NDArray[np.floating]) -> float:
        return float(average_precision_score(self.label[self.test], scores))

    def draw(self, n_frauds: int, seed: int) -> Result:
        """Fine-tune on one draw."""
        assert self.stream.labels is not None
        shown = self._shown(n_frauds, seed)
        column = self.stream.labels.column
        table = offline_table(
            self.frame.with_columns(pl.when(pl.Series(shown)).then(pl.col(column)).alias(column)), self.stream
        )
        known = shown & (table.time_ms < self.known_until_ms)
        train, test = table.take(self.train), table.take(self.test)
        model = finetune(
            self.pretrained,
            train,
            label=np.where(known, self.label, 0)[self.train].astype(np.int8),
            known=known[self.train],
            config=FinetuneConfig(),
            seed=seed,
        )
        scores = model.score(np.asarray(test.numeric), np.asarray(test.categorical))
        return Result(int(self.label[self.train][known[self.train]].sum()), self.label_free, self._ap(scores))

    def _shown(self, n_frauds: int, seed: int) -> NDArray[np.bool_]:
        """Events of the members whose labels are known."""
        _, member = np.unique(self.frame[self.stream.key].cast(pl.String).to_numpy(), return_inverse=True)
        rows = slice(self.train.start, int(np.searchsorted(times_of(self.frame, self.stream), self.known_until_ms)))
        frauds = np.bincount(member[rows], self.label[rows], minlength=int(member.max()) + 1)
        order = np.random.default_rng((seed, n_frauds)).permutation(len(frauds))
        enough = int(np.searchsorted(np.cumsum(frauds[order]), n_frauds)) + 1
        return np.isin(member, order[:enough])

    def results(self, n_frauds: int, n_draws: int) -> Iterator[Result]:
        """One result for each draw."""
        for seed in range(n_draws):
            yield self.draw(n_frauds, seed)


def not_below(results: list[Result]) -> int:
    """Draws in which the fine-tuned score is at least as good, but for the rounding of scores to float32."""
    return sum(one.fine_tuned >= one.label_free - 1e-6 for one in results)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of past events (default: simulated payments)")
    parser.add_argument("--stream", required=True, help="stream file, or the name of a shipped stream")
    parser.add_argument("--train-end", type=day_ms, help="last day of training, YYYY-MM-DD")
    parser.add_argument("--test-end", type=day_ms, help="last day of the test period")
    parser.add_argument("--draws", type=int, default=N_DRAWS, help=f"draws per number of frauds (default {N_DRAWS})")
    parser.add_argument("--frauds", type=int, nargs="+", default=N_FRAUDS, help="numbers of known frauds")
    options = parser.parse_args(arguments)
    stream = shipped.load(options.stream)
    if options.data:
        frame = read_folder(stream, options.data)
        given = Draws(frame, stream, options.train_end + DAY_MS, options.test_end + DAY_MS)
    else:
        frame = simulated(seed=21)
        start = day_ms("2026-01-01")
        given = Draws(frame, stream, start + 45 * DAY_MS, start + 60 * DAY_MS)
    print(f"label-free: average precision {given.label_free:.4f}", flush=True)
    bad = False
    for n_frauds in options.frauds:
        results = list(given.results(n_frauds, options.draws))
        found = np.array([one.fine_tuned for one in results])
        kept = not_below(results)
        bad |= kept < 0.95 * len(results)
        words = f"not below the label-free score in {kept} of {len(results)} draws"
        print(f"{n_frauds:>4} frauds: mean {found.mean():.4f}, lowest {found.min():.4f}; {words}", flush=True)
    return int(bad)


if __name__ == "__main__":
    sys.exit(main())
