"""Models of simulated payments: good ones that differ as retrained models do, and bad ones, as mistakes make them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cached_property, partial
from typing import Self

import numpy as np
import polars as pl
from numpy.typing import NDArray

from flows.demo.source import SIMULATED, SIMULATED_LIVE_EVENTS
from flows.streams import shipped
from flows.training_data import budget_of, offline_table
from models.fit.finetune import FinetuneConfig, TrainedModel, finetune
from models.fit.pretrain import PretrainConfig, Pretrained, pretrain
from models.score.calibrate import LogitCalibration
from models.table import Table
from pipelines.contracts.stream import DAY_MS, Stream
from pipelines.play.simulate import payments

STALE_DAYS = 12  # of history that a stale model was trained on
LEAKED = "customer_id.amount.zscore.30d"  # the column in which the label stands in the training of a leaking model


@dataclass(frozen=True)
class World:
    """A simulated stream: the rows before `live_from` are history to train on.

    Args:
        seed: of the networks and the trees.
        max_steps: of pretraining.
    """

    frame: pl.DataFrame
    live_from: int
    seed: int
    max_steps: int = 300

    @classmethod
    def simulated(cls, seed: int, *, max_steps: int = 300) -> Self:
        """The payments of the demo, by seed."""
        frame = payments(seed=seed, start=datetime(2026, 1, 1, tzinfo=UTC), **SIMULATED)
        return cls(frame, len(frame) - SIMULATED_LIVE_EVENTS, seed, max_steps)

    @cached_property
    def stream(self) -> Stream:
        return shipped.load("payments")

    @cached_property
    def table(self) -> Table:
        return offline_table(self.frame, self.stream)

    @cached_property
    def label(self) -> NDArray[np.int8]:
        return self.frame["label"].to_numpy().astype(np.int8)

    def pretrained(self, seed: int = 0, *, n: int | None = None, table: Table | None = None) -> Pretrained:
        """An encoder of the first `n` rows."""
        rows = (table or self.table).take(slice(0, n or self.live_from))
        return pretrain(rows, config=PretrainConfig(max_steps=self.max_steps), seed=self.seed * 100 + seed)

    @cached_property
    def encoder(self) -> Pretrained:
        return self.pretrained()

    def tuned(
        self,
        encoder: Pretrained,
        *,
        seed: int = 0,
        n: int | None = None,
        share: float = 1.0,
        label: NDArray[np.int8] | None = None,
        table: Table | None = None,
    ) -> TrainedModel:
        """A model of the first `n` rows, with the matured labels of a share of the customers."""
        assert self.stream.labels is not None
        n, table = n or self.live_from, table or self.table
        rows, label = table.take(slice(0, n)), self.label if label is None else label
        mature = rows.time_ms < rows.time_ms[-1] - self.stream.labels.maturity_ms
        assert rows.entity is not None
        known = mature & (rows.entity % np.uint64(1_000) < np.uint64(1_000 * share))
        config = FinetuneConfig(budget=budget_of(self.stream))
        return finetune(encoder, rows, label=label[:n], known=known, config=config, seed=self.seed * 100 + seed)

    def good(self) -> Mapping[str, Callable[[], TrainedModel]]:
        """Models that nobody would return, the first of them the usual one."""
        younger = int(0.8 * self.live_from)
        return {
            "usual": lambda: self.tuned(self.encoder),
            "other seed": lambda: self.tuned(self.encoder, seed=1),
            "other encoder": lambda: self.tuned(self.pretrained(1), seed=1),
            "earlier": lambda: self.tuned(self.pretrained(n=younger), n=younger),
            "a tenth of the labels": lambda: self.tuned(self.encoder, share=0.1),
            "label-free": lambda: self.tuned(self.encoder, share=0.0),
        }

    def bad(self) -> Mapping[str, Callable[[], TrainedModel]]:
        """Models that must not stay, by the mistake that makes them."""
        return {
            "flipped": self._flipped,
            "constant": partial(self._constant, silent=True),
            "constant, all alert": partial(self._constant, silent=False),
            "leak": self._leaking,
            "stale, other units": partial(self._stale, cents=True),
            "stale": partial(self._stale, cents=False),
        }

    def _flipped(self) -> TrainedModel:
        return self.tuned(self.encoder, label=(1 - self.label).astype(np.int8))

    def _constant(self, *, silent: bool) -> TrainedModel:
        model = self.tuned(self.encoder, share=0.1)
        rules = replace(model.rules, logit=LogitCalibration(0.0, -4.0), threshold=0.5 if silent else 0.0)
        return replace(model, rules=rules)

    def _leaking(self) -> TrainedModel:
        table = self.leaked
        return self.tuned(self.pretrained(table=table), table=table)

    @cached_property
    def leaked(self) -> Table:
        """The history with the label in a column."""
        names = [c.name for c in self.table.columns if c.kind == "numeric"]
        numeric = self.table.numeric[:].copy()
        noise = np.random.default_rng(self.seed).normal(size=len(numeric))
        numeric[:, names.index(LEAKED)] = 6.0 * self.label + noise
        return replace(self.table, numeric=numeric)

    def _stale(self, *, cents: bool) -> TrainedModel:
        frame = payments(seed=self.seed + 1_000, start=datetime(2024, 1, 1, tzinfo=UTC), **SIMULATED)
        frame = frame.filter(pl.col("time").dt.epoch("ms") < pl.col("time").dt.epoch("ms").min() + STALE_DAYS * DAY_MS)
        if cents:
            frame = frame.with_columns(pl.col("amount") * 100)
        past = World(frame, len(frame), self.seed, self.max_steps)
        return past.tuned(past.pretrained())
