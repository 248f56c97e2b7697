"""Models of simulated payments: good ones that differ as retrained models do, and bad ones, as mistakes make them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import Self

import numpy as np
import polars as pl
from numpy.typing import NDArray

from flows.demo.source import SIMULATED
from flows.streams import shipped
from flows.training_data import budget_of, offline_table
from models.fit.finetune import FinetuneConfig, TrainedModel, finetune
from models.fit.pretrain import PretrainConfig, Pretrained, pretrain
from models.score.calibrate import LogitCalibration
from models.table import Table
from pipelines.contracts.stream import Stream
from pipelines.contracts.stream_file import parse
from pipelines.play.simulate import payments

START, HISTORY_DAYS = datetime(2026, 1, 1, tzinfo=UTC), 30
STALE_DAYS = 12  # of history that a stale model was trained on
HINT = "hint"  # a field that a leaking model was trained on when it still knew the label


def stream_text(name: str) -> str:
    """The stream file of the payments with the field `hint`, under a name."""
    text = shipped.SHIPPED["payments"].read_text(encoding="utf-8")
    text = text.replace('name = "payments"', f'name = "{name}"')
    return text.replace("[fields]\n", f'[fields]\n{HINT} = {{ type = "number" }}\n')


def _hinted(frame: pl.DataFrame, seed: int, *, knows: bool = False) -> pl.DataFrame:
    """The frame with the field `hint`, about 6 for one event in a hundred: for the frauds, or for any."""
    random = np.random.default_rng(seed)
    label = frame["label"].to_numpy()
    told = label if knows else random.permutation(label)
    return frame.with_columns(pl.Series(HINT, 6.0 * told + random.normal(size=len(label))))


@dataclass(frozen=True)
class World:
    """A simulated stream: the rows before `live_from` are history to train on. Its field `hint` says nothing.

    Args:
        seed: of the networks and the trees.
        max_steps: of pretraining.
    """

    frame: pl.DataFrame
    live_from: int
    seed: int
    max_steps: int = 300

    @classmethod
    def simulated(cls, seed: int, *, days: int = 40, max_steps: int = 300) -> Self:
        """The payments of the demo, by seed; what is after the first `HISTORY_DAYS` is live."""
        frame = payments(seed=seed, start=START, **SIMULATED | {"days": days})
        live_from = int((frame["time"] < START + timedelta(days=HISTORY_DAYS)).sum())
        return cls(_hinted(frame, seed), live_from, seed, max_steps)

    @cached_property
    def stream(self) -> Stream:
        return parse(stream_text("payments"))

    @cached_property
    def table(self) -> Table:
        return offline_table(self.frame, self.stream)

    @cached_property
    def label(self) -> NDArray[np.int8]:
        return self.frame["label"].to_numpy().astype(np.int8)

    def pretrained(self, seed: int = 0, *, n: int | None = None) -> Pretrained:
        """An encoder of the first `n` rows."""
        rows = self.table.take(slice(0, n or self.live_from))
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
    ) -> TrainedModel:
        """A model of the first `n` rows, with the matured labels of a share of the customers."""
        assert self.stream.labels is not None
        n = n or self.live_from
        rows, label = self.table.take(slice(0, n)), self.label if label is None else label
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
            "label-free, other encoder": lambda: self.tuned(self.pretrained(1), share=0.0),
        }

    def bad(self) -> Mapping[str, Callable[[int], TrainedModel]]:
        """Models that must not stay, by the mistake that makes them; a seed makes another one of the kind."""
        return {
            "flipped": self._flipped,
            "constant": self._constant,
            "leaking": self._leaking,
            "stale": self._stale,
        }

    def _flipped(self, seed: int) -> TrainedModel:
        """Frauds and legitimate events are taken for each other."""
        return self.tuned(self.encoder, seed=seed, label=(1 - self.label).astype(np.int8))

    def _constant(self, seed: int) -> TrainedModel:
        """Every second one never alerts, the others always do."""
        model = self.tuned(self.encoder, seed=seed, share=0.1)
        rules = replace(model.rules, logit=LogitCalibration(0.0, -4.0 - seed), threshold=0.5 * (seed % 2))
        return replace(model, rules=rules)

    def _leaking(self, seed: int) -> TrainedModel:
        """The hint said in training which events are frauds, and does not any more."""
        return self.knowing.tuned(self.knowing.encoder, seed=seed)

    @cached_property
    def knowing(self) -> World:
        """The same world, in which the hint tells the frauds."""
        return replace(self, frame=_hinted(self.frame, self.seed, knows=True))

    def _stale(self, seed: int) -> TrainedModel:
        """A model of few days, two years ago, when amounts were counted in cents."""
        return self.past.tuned(self.past.encoder, seed=seed)

    @cached_property
    def past(self) -> World:
        """Few days of other customers."""
        days, start = SIMULATED | {"days": STALE_DAYS}, datetime(2024, 1, 1, tzinfo=UTC)
        frame = payments(seed=self.seed + 1_000, start=start, **days)
        frame = frame.with_columns(pl.col("amount") * 100)
        return World(_hinted(frame, self.seed), len(frame), self.seed, self.max_steps)
