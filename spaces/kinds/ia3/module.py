"""A rescaling of features."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sparsearch.spaces.kinds.module_base import Fold, Unit

__all__ = ["IA3Unit"]


class IA3Unit(Unit):
    """scale (features); ``inner`` if they are the host's input."""

    def __init__(self, features: int, inner: bool) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.zeros(features))
        self.inner = inner

    def forward(self, x: Tensor, gate: Tensor | None) -> Tensor:
        """X (..., features) -> the same shape."""
        return x * (self.scale if gate is None else self.scale * gate)

    def fold(self, weight: Tensor, bias: Tensor | None) -> Fold:
        """Columns of the weight for the input; rows of weight and bias for the output."""
        scale = self.scale.to(weight)
        if self.inner:
            return weight * scale, None
        return weight * scale[:, None], None if bias is None else bias * scale
