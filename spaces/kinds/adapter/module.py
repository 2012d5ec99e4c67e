"""A bottleneck adapter."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from sparsearch.spaces.kinds.module_base import Unit

__all__ = ["AdapterUnit"]


class AdapterUnit(Unit):
    """down (bottleneck, features), up (features, bottleneck)."""

    def __init__(self, features: int, bottleneck: int) -> None:
        super().__init__()
        self.down = nn.Linear(features, bottleneck)
        self.up = nn.Linear(bottleneck, features)
        nn.init.normal_(self.down.weight, std=0.01)
        for zero in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(zero)

    def forward(self, x: Tensor, gate: Tensor | None) -> Tensor:
        """X (..., features) -> the same shape."""
        delta: Tensor = self.up(F.gelu(self.down(x)))
        return delta if gate is None else delta * gate.to(delta.dtype)
