"""The complete scoring network: prediction, surprise and risk."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from models.net.encoder import Encoder
from models.net.expectation import Expectation


class ScoringNetwork(nn.Module):
    """Computes surprises and, if trained on labels, the mean logit of the risk networks.

    The inputs of the risk networks are all cells, including those built from labels, and log(1 + surprise) of each
    field. Their trunk is initialised from the pretrained one.
    """

    def __init__(self, expectation: Expectation, risks: Sequence[Encoder]) -> None:
        super().__init__()
        self.expectation = expectation
        self.risks = nn.ModuleList(risks)

    def forward(self, values: Tensor, present: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
        """Logit (n,), which is 0 without a head, and surprises in nats (n, n_fields)."""
        nats = self.expectation.surprises(values, present, codes)
        values, present = beside(self.expectation, values, present, codes, nats)
        logits = [risk(values, present, codes)[:, 0] for risk in self.risks]
        return (torch.stack(logits).mean(dim=0) if logits else nats.new_zeros(len(nats))), nats


def beside(
    expectation: Expectation, values: Tensor, present: Tensor, codes: Tensor, nats: Tensor
) -> tuple[Tensor, Tensor]:
    """Inputs ``values`` and ``present`` of a risk network: the cells, then the surprises (missing = masked)."""
    shown = (~nats.isnan()).to(present.dtype)
    return torch.cat([values, torch.log1p(nats.nan_to_num(0.0))], 1), torch.cat([present, shown], 1)


def risk_network(expectation: Expectation, nats: NDArray[np.float32], *, dropout: float) -> Encoder:
    """Create a risk network with the pretrained trunk and small weights on surprises and columns built from labels.

    Args:
        expectation: the pretrained network.
        nats: surprises of training rows, **shape (n, n_fields)**, NaN = missing. They determine the bin edges.
        dropout: share of hidden units dropped.
    """
    source = expectation.encoder
    left, slope = source.left.numpy(), source.slope.numpy()
    right = left + np.divide(1.0, slope, out=np.zeros_like(slope), where=slope > 0)
    edges = np.concatenate([left, right[:, -1:]], axis=1)
    shares = np.concatenate([[0.0], 1 - np.geomspace(1, 1 / max(2, len(nats)), edges.shape[1] - 1)])
    seen = [column[np.isfinite(column)] for column in nats.T]
    extra = np.stack(
        [np.maximum.accumulate(np.quantile(np.log1p(some if some.size else np.zeros(1)), shares)) for some in seen]
    )
    risk = Encoder(
        np.concatenate([edges, extra]).astype(np.float32),
        expectation.n_codes,
        width=source.width,
        n_layers=len(source.layers),
        d_out=1,
        dropout=dropout,
    )
    width, rows = source.width, source.pieces_weight.shape[0]
    with torch.no_grad():
        fresh = risk.pieces_weight[:, :width]
        readable = expectation.readable.repeat_interleave(left.shape[1]).unsqueeze(1) > 0
        fresh[:rows] = torch.where(readable, source.pieces_weight[:, :width], fresh[:rows])
        risk.missing_weight[: expectation.d_num, :width] = source.missing_weight[:, :width]
        for mine, theirs in zip(risk.code_weights, source.code_weights, strict=True):
            mine[:, :width] = theirs[:, :width]
        risk.bias[:width] = source.bias[:width]
    risk.layers.load_state_dict(source.layers.state_dict())
    return risk
