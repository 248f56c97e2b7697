"""The network that predicts hidden cells, and the surprise of their real values."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from models.masking import MaskedField, event_fields, views
from models.net.encoder import Encoder
from models.table import Column

SPREAD = 3.0  # limit of log deviations: smaller ones would amplify rounding errors beyond 1e-5
CellTensors = tuple[Tensor, Tensor, Tensor]  # values, present, codes
FLOOR = 1e-3  # probability that is distributed over all codes of a categorical prediction


class Expectation(nn.Module):
    """Predicts every readable column from the cells that are not hidden.

    The output is a mean and a log standard deviation for each numeric column, and logits over the codes of each
    categorical column. The density has one mode: a more flexible one would also fit the frauds. Columns built from
    labels are not read.
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
        context: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.columns, self.edges, self.context = tuple(columns), edges, tuple(context)
        self.d_num, self.n_codes = len(edges), tuple(n_codes)
        numeric = self.columns[: self.d_num]
        self.register_buffer("readable", torch.tensor([0.0 if c.label_fed else 1.0 for c in numeric]))
        # 0 = not predicted better than by its marginal distribution, which is then used (`trust_fields`)
        self.register_buffer("trust", torch.ones(len(self.columns)))
        self.register_buffer("marginal", torch.zeros(sum(self.n_codes)))
        d_out = 2 * self.d_num + sum(self.n_codes)
        self.encoder = Encoder(edges, n_codes, width=width, n_layers=n_layers, d_out=d_out)
        self.fields: tuple[MaskedField, ...] = event_fields(self.columns, context)
        self.views = views(self.fields, len(self.columns))

    def forward(
        self, values: Tensor, present: Tensor, codes: Tensor, outputs: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Mean and log deviation (n, d_num), logits (n, all codes). If outputs are given, only those are not 0."""
        return self.split(self.encoder(values, present * self.readable, codes, outputs), outputs)

    def hidden_predicted(
        self, batch: CellTensors, hidden: Tensor, outputs: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Like `forward`, with some cells hidden, bool, **shape (n, d)**."""
        values, present, codes = batch
        numbers, texts = hidden[:, : self.d_num], hidden[:, self.d_num :]
        return self(values, present * ~numbers, torch.where(texts, torch.zeros_like(codes), codes), outputs)

    def outputs_of(self, *columns: int) -> Tensor:
        """The outputs that describe columns, ascending: mean and log deviation, or the logits of the codes."""
        found: list[int] = []
        for column in columns:
            if column < self.d_num:
                found += [column, self.d_num + column]
            else:
                logits = self.code_slice(column)
                found += range(2 * self.d_num + logits.start, 2 * self.d_num + logits.stop)
        return torch.tensor(sorted(found), dtype=torch.int64, device=self.readable.device)

    def split(self, out: Tensor, outputs: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Split all or some outputs into mean, log deviation and logits; the other outputs count as 0.

        Columns that are not trusted get the marginal distribution.
        """
        d = self.d_num
        if outputs is not None:
            out = out.new_zeros(len(out), self.encoder.d_out).index_copy(1, outputs, out)
        trust = self.trust[:d]
        of_codes = torch.cat([t.expand(n) for t, n in zip(self.trust[d:], self.n_codes, strict=True)] or [trust[:0]])
        mean, spread = out[:, :d] * trust, out[:, d : 2 * d].clamp(-SPREAD, SPREAD) * trust
        return mean, spread, out[:, 2 * d :] * of_codes + self.marginal * (1 - of_codes)

    def code_slice(self, column: int) -> slice:
        """Position of the logits of a categorical column."""
        start = sum(self.n_codes[: column - self.d_num])
        return slice(start, start + self.n_codes[column - self.d_num])

    def surprises(self, values: Tensor, present: Tensor, codes: Tensor, *, density: bool = False) -> Tensor:
        """Surprise of each field in nats, (n, n_fields), with the field hidden; NaN if it is missing.

        With ``density``, log deviations are added, so that the result is a loss. The first layer is computed once
        for all views; the contribution of hidden columns is subtracted. Only outputs of trusted fields are computed.
        """
        present = present * self.readable
        pieces = self.encoder.pieces(values)
        trusted = [field.target for field in self.fields if self.trust[field.target] > 0]
        outputs = self.outputs_of(*trusted)
        joint = self.encoder.first(pieces, present, codes, outputs)
        found: list[list[Tensor]] = [[] for _ in self.fields]
        for view in self.views:
            out = joint[:, self.encoder.width :]
            if view[trusted].any():
                out = self.encoder.rest(
                    self._hide(joint, pieces, present, codes, np.flatnonzero(view), outputs), outputs
                )
            mean, spread, logits = self.split(out, outputs)
            for field, nats in zip(self.fields, found, strict=True):
                if view[field.target]:
                    nats.append(self._nats(field.target, values, present, codes, mean, spread, logits, density))
        return torch.stack([torch.stack(nats).mean(dim=0) for nats in found], dim=1)

    def _hide(
        self,
        joint: Tensor,
        pieces: Tensor,
        present: Tensor,
        codes: Tensor,
        hidden: NDArray[np.int64],
        outputs: Tensor,
    ) -> Tensor:
        kept = self.encoder.joint(outputs)
        numbers = [int(i) for i in hidden if i < self.d_num]
        if numbers:
            shown = present[:, numbers]
            n_bins = pieces.shape[2]
            weight = self.encoder.pieces_weight.view(self.d_num, n_bins, -1)[numbers][..., kept].flatten(0, 1)
            joint = joint - (pieces[:, numbers] * shown.unsqueeze(-1)).flatten(1) @ weight
            joint = joint + shown @ self.encoder.missing_weight[numbers][:, kept]
        for j in (int(i) - self.d_num for i in hidden if i >= self.d_num):
            weight = self.encoder.code_weights[j][:, kept]
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
