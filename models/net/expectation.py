"""The network that predicts hidden cells, and how surprising the shown ones are."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from models.masking import MaskedField, event_fields, views
from models.net.encoder import Encoder
from models.table import Column

SPREAD = 3.0  # log deviations stay within +- this: narrower ones would magnify rounding beyond 1e-5


FLOOR = 1e-3  # probability that a categorical prediction spreads over all codes


class Expectation(nn.Module):
    """Predicts every readable column from the cells that are not hidden.

    Outputs per numeric column a mean and a log standard deviation (one mode: a flexible density would
    learn the frauds, DETECTION section 1), per categorical column logits over its codes. Label-fed columns
    are never read.
    """

    readable: Tensor
    trust: Tensor
    marginal: Tensor

    def __init__(
        self,
        columns: Sequence[Column],
        edges: NDArray[np.float32],
        n_codes: Sequence[int],
        *,
        width: int,
        n_layers: int,
    ) -> None:
        super().__init__()
        self.columns = tuple(columns)
        self.d_num, self.n_codes = len(edges), tuple(n_codes)
        numeric = self.columns[: self.d_num]
        self.register_buffer("readable", torch.tensor([0.0 if c.label_fed else 1.0 for c in numeric]))
        # 0 = predicted no better than by its own distribution: then that is its prediction (`trust_fields`)
        self.register_buffer("trust", torch.ones(len(self.columns)))
        self.register_buffer("marginal", torch.zeros(sum(self.n_codes)))
        d_out = 2 * self.d_num + sum(self.n_codes)
        self.encoder = Encoder(edges, n_codes, width=width, n_layers=n_layers, d_out=d_out)
        self.fields: tuple[MaskedField, ...] = event_fields(self.columns)
        self.views = views(self.fields, len(self.columns))

    def forward(self, values: Tensor, present: Tensor, codes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Mean and log deviation (n, d_num), logits (n, all codes)."""
        return self.split(self.encoder(values, present * self.readable, codes))

    def split(self, out: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The network's output as mean, log deviation and logits; marginal ones where it is not trusted."""
        d = self.d_num
        trust = self.trust[:d]
        of_codes = torch.cat([t.expand(n) for t, n in zip(self.trust[d:], self.n_codes, strict=True)] or [trust[:0]])
        mean, spread = out[:, :d] * trust, out[:, d : 2 * d].clamp(-SPREAD, SPREAD) * trust
        return mean, spread, out[:, 2 * d :] * of_codes + self.marginal * (1 - of_codes)

    def code_slice(self, column: int) -> slice:
        """Where the logits of a categorical column stand."""
        start = sum(self.n_codes[: column - self.d_num])
        return slice(start, start + self.n_codes[column - self.d_num])

    def surprises(self, values: Tensor, present: Tensor, codes: Tensor, *, density: bool = False) -> Tensor:
        """Nats per field, (n, n_fields): each field hidden in turn; NaN where it is missing.

        With ``density`` log deviations are added, which makes it a loss. The first layer is shared by all views:
        a hidden column's part is taken out of it again.
        """
        present = present * self.readable
        pieces = self.encoder.pieces(values)
        joint = self.encoder.first(pieces, present, codes)
        found: list[list[Tensor]] = [[] for _ in self.fields]
        for view in self.views:
            out = self.encoder.rest(self._hide(joint, pieces, present, codes, np.flatnonzero(view)))
            mean, spread, logits = self.split(out)
            for field, nats in zip(self.fields, found, strict=True):
                if view[field.target]:
                    nats.append(self._nats(field.target, values, present, codes, mean, spread, logits, density))
        return torch.stack([torch.stack(nats).mean(dim=0) for nats in found], dim=1)

    def _hide(self, joint: Tensor, pieces: Tensor, present: Tensor, codes: Tensor, hidden: NDArray[np.int64]) -> Tensor:
        numbers = [int(i) for i in hidden if i < self.d_num]
        if numbers:
            shown = present[:, numbers]
            n_bins = pieces.shape[2]
            weight = self.encoder.pieces_weight.view(self.d_num, n_bins, -1)[numbers].flatten(0, 1)
            joint = joint - (pieces[:, numbers] * shown.unsqueeze(-1)).flatten(1) @ weight
            joint = joint + shown @ self.encoder.missing_weight[numbers]
        for j in (int(i) - self.d_num for i in hidden if i >= self.d_num):
            weight = self.encoder.code_weights[j]
            joint = joint - nn.functional.embedding(codes[:, j], weight - weight[:1])
        return joint

    def _nats(
        self,
        target: int,
        values: Tensor,
        present: Tensor,
        codes: Tensor,
        mean: Tensor,
        spread: Tensor,
        logits: Tensor,
        density: bool,
    ) -> Tensor:
        if target < self.d_num:
            z = (values[:, target] - mean[:, target]) * torch.exp(-spread[:, target])
            nats = 0.5 * z * z + spread[:, target] * density
            return nats.masked_fill(present[:, target] == 0, float("nan"))
        code = codes[:, target - self.d_num]
        p = torch.softmax(logits[:, self.code_slice(target)], dim=1)
        chosen = p.gather(1, code.unsqueeze(1)).squeeze(1)
        return -torch.log((1 - FLOOR) * chosen + FLOOR / p.shape[1]).masked_fill(code == 0, float("nan"))
