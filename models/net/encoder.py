"""The encoder: piecewise-linear encoding of cells, then an MLP that predicts columns or a risk."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn


class Encoder(nn.Module):
    """An MLP with a linear skip connection on piecewise-linear inputs. A hidden cell adds only its "missing" vector.

    Attention was not better than an MLP on single rows, and scoring is 10 to 20 times slower with it.

    Args:
        edges: ascending bin edges per numeric column, padded with the last one, **shape (d_num, n_edges)**.
        n_codes: number of codes per categorical column.
        width: units of a hidden layer.
        n_layers: hidden layers after the first.
        d_out: number of outputs.
        dropout: share of hidden units dropped in training.

    **Shape**: values, present (n, d_num) float32; codes (n, d_cat) int64; output (n, d_out).

    Source: piecewise-linear encoding (arXiv 2203.05556).
    """

    left: Tensor
    slope: Tensor

    def __init__(
        self,
        edges: NDArray[np.float32],
        n_codes: Sequence[int],
        *,
        width: int,
        n_layers: int,
        d_out: int,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        left, right = edges[:, :-1], edges[:, 1:]
        slope = np.divide(1.0, right - left, out=np.zeros_like(left), where=right > left)
        self.register_buffer("left", torch.tensor(left))
        self.register_buffer("slope", torch.tensor(slope))
        self.width, self.d_out = width, d_out
        d_num, n_bins = left.shape
        joint = width + d_out  # the first layer computes the trunk's input and the linear skip in one product
        self.pieces_weight = nn.Parameter(torch.randn(d_num * n_bins, joint) / max(1, d_num * n_bins) ** 0.5)
        self.missing_weight = nn.Parameter(torch.zeros(d_num, joint))
        self.code_weights = nn.ParameterList([nn.Parameter(0.1 * torch.randn(n, joint)) for n in n_codes])
        self.bias = nn.Parameter(torch.zeros(joint))
        with torch.no_grad():
            self.pieces_weight[:, width:] = 0.0
            for weight in self.code_weights:
                weight[:, width:] = 0.0
        self.layers = nn.ModuleList([nn.Linear(width, width) for _ in range(n_layers)])
        self.out = nn.Linear(width, d_out)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)
        self.dropout = nn.Dropout(dropout)

    def pieces(self, values: Tensor) -> Tensor:
        """Piecewise-linear encoding, (n, d_num, n_bins), each in [0, 1]."""
        return ((values.unsqueeze(-1) - self.left) * self.slope).clamp(0.0, 1.0)

    def joint(self, outputs: Tensor | None) -> Tensor | slice:
        """The part of the last axis of the first layer's weights that some outputs need; None = all."""
        if outputs is None:
            return slice(None)
        return torch.cat([torch.arange(self.width, device=outputs.device), self.width + outputs])

    def first(self, pieces: Tensor, present: Tensor, codes: Tensor, outputs: Tensor | None = None) -> Tensor:
        """First layer and linear skip, (n, width + d_out); hidden cells have present 0 or code 0."""
        kept = self.joint(outputs)
        joint = (pieces * present.unsqueeze(-1)).flatten(1) @ self.pieces_weight[:, kept]
        joint = joint + (1.0 - present) @ self.missing_weight[:, kept] + self.bias[kept]
        for j, weight in enumerate(self.code_weights):
            joint = joint + nn.functional.embedding(codes[:, j], weight[:, kept])
        return joint

    def rest(self, joint: Tensor, outputs: Tensor | None = None) -> Tensor:
        """The output of trunk and output layer plus the linear skip, (n, d_out)."""
        kept = slice(None) if outputs is None else outputs
        out = nn.functional.linear(self.trunk(joint), self.out.weight[kept], self.out.bias[kept])
        return out + joint[:, self.width :]

    def trunk(self, joint: Tensor) -> Tensor:
        """The representation, (n, width)."""
        hidden = self.dropout(torch.relu(joint[:, : self.width]))
        for layer in self.layers:
            hidden = hidden + self.dropout(torch.relu(layer(hidden)))
        return hidden

    def forward(self, values: Tensor, present: Tensor, codes: Tensor, outputs: Tensor | None = None) -> Tensor:
        """The outputs, or only some of them, int64, **shape (o,)**: then the last axis is o instead of d_out."""
        return self.rest(self.first(self.pieces(values), present, codes, outputs), outputs)
