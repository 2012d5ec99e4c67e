"""Bottleneck adapter: sequential (Houlsby et al. 2019) or parallel (He et al. 2022, section 3.3)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

from sparsearch.spaces.kinds.base import Kind, Stage, Unit
from sparsearch.spaces.positions import Position

__all__ = ["Adapter", "AdapterUnit"]


@dataclass(frozen=True)
class Adapter(Kind):
    """delta = up(gelu(down(x))) around a whole sub-layer.

    Attributes:
        bottleneck: Width of the candidate that a space offers (S3PET: 24).
        parallel: Fed with the sub-layer's input instead of its output.
    """

    name: ClassVar[str] = "adapter"
    mergeable: ClassVar[bool] = False
    default_on: ClassVar[tuple[str, ...]] = ("*.attn", "*.ffn")
    bottleneck: int = 24
    parallel: bool = False

    def accepts(self, position: Position) -> bool:
        """Any attention or feed-forward block."""
        return position.role == "block"

    def stage(self, position: Position) -> Stage:
        """After the block, or beside it."""
        return "parallel" if self.parallel else "sequential"

    def sizes(self, position: Position) -> tuple[int, ...]:
        """One candidate of the chosen width."""
        return (self.bottleneck,)

    def params(self, position: Position, size: int) -> int:
        """Two matrices and two biases."""
        d = position.out_features
        return 2 * d * size + size + d

    def flops_per_token(self, position: Position, size: int) -> int:
        """Two products."""
        return 4 * position.out_features * size

    def build(self, position: Position, size: int, host: nn.Module) -> AdapterUnit:
        """Down N(0, 0.01), up zero."""
        return AdapterUnit(position.out_features, size)


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
