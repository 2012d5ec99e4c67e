"""IA3 (Liu et al. 2022, section 3.3): trained rescaling of keys, values and inner activations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from sparsearch.spaces.kinds.base import Fold, Kind, Stage, Unit
from sparsearch.spaces.positions import Position

__all__ = ["IA3", "IA3Unit"]


@dataclass(frozen=True)
class IA3(Kind):
    """y -> (1 + scale) * y on a linear's output; on ``ffn.down``, of its input."""

    name: ClassVar[str] = "ia3"
    default_on: ClassVar[tuple[str, ...]] = (
        "*.attn.k",
        "*.attn.v",
        "*.cross.k",
        "*.cross.v",
        "*.ffn.down",
    )

    def accepts(self, position: Position) -> bool:
        """Any linear."""
        return position.role == "linear"

    def stage(self, position: Position) -> Stage:
        """The inner activation is the input of ``ffn.down``; elsewhere the output is rescaled."""
        return "input" if position.name.endswith("ffn.down") else "sequential"

    def params(self, position: Position, size: int) -> int:
        """One per rescaled feature."""
        inner = self.stage(position) == "input"
        return position.in_features if inner else position.out_features

    def build(self, position: Position, size: int, host: nn.Module) -> IA3Unit:
        """Zero, a factor of one."""
        return IA3Unit(self.params(position, size), inner=self.stage(position) == "input")


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
