"""An adapter of Kronecker products."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparsearch.spaces.kinds.module_base import Unit, in_type_of

__all__ = ["CompacterUnit", "KroneckerLinear"]


class KroneckerLinear(nn.Module):
    """X (..., in) -> (..., out) by W = sum of A_i x (t_i s_i) over i < n, and a bias. W is never made.

    ``rules`` (n, n, n) holds A_i; ``inner`` (n rank, in/n) all s_i, ``outer`` (out/n, n rank) all t_i.
    """

    def __init__(self, in_features: int, out_features: int, division: int, rank: int) -> None:
        super().__init__()
        n = self.division = division
        self.rules = nn.Parameter(torch.randn(n, n, n) * n**-0.5)
        self.inner = nn.Parameter(torch.empty(n * rank, in_features // n))
        self.outer = nn.Parameter(torch.empty(out_features // n, n * rank))
        self.bias = nn.Parameter(torch.zeros(out_features))
        for factor in (self.inner, self.outer):
            nn.init.xavier_normal_(factor)

    def forward(self, x: Tensor) -> Tensor:
        """The n parts of x by all s_i, mixed by A_i, spread by t_i."""
        n = self.division
        split = x.reshape(*x.shape[:-1], n, -1)
        parts = F.linear(split, in_type_of(x, self.inner))
        parts = parts.view(*parts.shape[:-1], n, -1)
        mixed = torch.einsum("ipq,...qik->...pik", in_type_of(x, self.rules), parts).flatten(-2)
        spread = F.linear(mixed, in_type_of(x, self.outer)).flatten(-2)
        return spread + self.bias.to(spread.dtype)


class CompacterUnit(Unit):
    """down (features -> bottleneck) and up (bottleneck -> features)."""

    def __init__(self, features: int, bottleneck: int, division: int, rank: int) -> None:
        super().__init__()
        self.down = KroneckerLinear(features, bottleneck, division, rank)
        self.up = KroneckerLinear(bottleneck, features, division, rank)
        nn.init.zeros_(self.up.outer)

    def forward(self, x: Tensor, gate: Tensor | None) -> Tensor:
        """X (..., features) -> the same shape."""
        delta: Tensor = self.up(F.gelu(self.down(x)))
        return delta if gate is None else delta * gate.to(delta.dtype)
