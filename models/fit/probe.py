"""A linear probe: how well the labels can be predicted from the outputs of a network."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from models.cells import CellCoding, Cells
from models.net.batches import as_batch, chunks
from models.net.expectation import Expectation
from models.table import Table


@dataclass(frozen=True)
class Probe:
    """Average precision of a linear probe on trunk and surprises, tested on the last of the known rows."""

    cells: Cells
    fraud: NDArray[np.bool_]
    n_fit: int

    @classmethod
    def of(
        cls,
        table: Table,
        coding: CellCoding,
        label: NDArray[np.int8] | None,
        known: NDArray[np.bool_] | None,
        n_train: int,
        *,
        max_rows: int = 12_000,
    ) -> Probe | None:
        if label is None or known is None:
            return None
        ours = np.flatnonzero(known)
        frauds, others = ours[label[ours] == 1], ours[label[ours] != 1]
        if len(frauds) < 4 or len(others) < 4:
            return None
        frauds = frauds[:: max(1, len(frauds) // 1500)]
        others = others[:: max(1, len(others) // max_rows)]
        rows = np.sort(np.concatenate([frauds, others]))
        fraud = label[rows] == 1
        n_fit = int(np.searchsorted(np.cumsum(fraud), 0.6 * fraud.sum()))
        cells = coding.cells(table, rows)
        return cls(cells, fraud, n_fit)

    def score(self, network: Expectation) -> float:
        from sklearn.linear_model import LogisticRegression
        from sklearn.metrics import average_precision_score
        from sklearn.preprocessing import StandardScaler

        network.eval()
        encoder = network.encoder
        hidden: list[NDArray[np.float32]] = []
        with torch.no_grad():
            for part in chunks(self.cells):
                values, present, codes = as_batch(part, network.readable.device)
                joint = encoder.first(encoder.pieces(values), present * network.readable, codes)
                nats = network.surprises(values, present, codes)
                hidden.append(torch.cat([encoder.trunk(joint), torch.log1p(nats.nan_to_num(0.0))], dim=1).cpu().numpy())
        network.train()
        x = StandardScaler().fit_transform(np.concatenate(hidden))
        if self.fraud[: self.n_fit].all() or not self.fraud[: self.n_fit].any():
            return 0.0
        probe = LogisticRegression(C=0.01, max_iter=200).fit(x[: self.n_fit], self.fraud[: self.n_fit])
        return float(average_precision_score(self.fraud[self.n_fit :], probe.decision_function(x[self.n_fit :])))
