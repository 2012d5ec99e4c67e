"""An adapter of outer products."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparsearch.spaces.kinds.module_base import Unit

__all__ = ["LowRankAdapterUnit"]


class LowRankAdapterUnit(Unit):
    """down = down_out down_in^T + bias, up = up_out up_in^T + bias; all factors are rank one."""

    def __init__(self, features: int, bottleneck: int) -> None:
        super().__init__()
        self.down_in = nn.Parameter(torch.empty(1, features))
        self.down_out = nn.Parameter(torch.empty(bottleneck, 1))
        self.down_bias = nn.Parameter(torch.zeros(bottleneck))
        self.up_in = nn.Parameter(torch.empty(1, bottleneck))
        self.up_out = nn.Parameter(torch.zeros(features, 1))
        self.up_bias = nn.Parameter(torch.zeros(features))
        for factor in (self.down_in, self.down_out, self.up_in):
            nn.init.xavier_normal_(factor)

    def forward(self, x: Tensor, gate: Tensor | None) -> Tensor:
        """X (..., features) -> the same shape."""
        # An outer product plus a bias is one pointwise operation, not a product with inner size one.
        s = F.linear(x, self.down_in)
        h = F.gelu(torch.addcmul(self.down_bias.to(s), s, self.down_out.to(s).T))
        t = F.linear(h, self.up_in)
        delta = torch.addcmul(self.up_bias.to(t), t, self.up_out.to(t).T)
        return delta if gate is None else delta * gate.to(delta.dtype)
