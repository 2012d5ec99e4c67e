"""A kind: a trained factor for each output feature of a linear."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from sparsearch.spaces.families.position import Position
from sparsearch.spaces.kinds.base import Kind, Stage
from sparsearch.spaces.kinds.module_base import Fold, Unit

__all__ = ["OutputScale", "OutputScaleModule"]


@dataclass(frozen=True)
class OutputScale(Kind):
    """y -> (1 + g) * y on a linear's output."""

    name: ClassVar[str] = "output_scale"

    def accepts(self, position: Position) -> bool:
        """Any linear."""
        return position.role == "linear"

    def stage(self, position: Position) -> Stage:
        """After the linear: it reads the output."""
        return "sequential"

    def params(self, position: Position, size: int) -> int:
        """One for each output feature."""
        return position.out_features

    def build(self, position: Position, size: int, host: nn.Module) -> OutputScaleModule:
        """Zeros: the model computes what it did."""
        return OutputScaleModule(position.out_features)


class OutputScaleModule(Unit):
    """g (out)."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.g = nn.Parameter(torch.zeros(features))

    def forward(self, x: Tensor, gate: Tensor | None) -> Tensor:
        """What is added to y (..., out): the same shape."""
        return x * (self.g if gate is None else self.g * gate)

    def fold(self, weight: Tensor, bias: Tensor | None) -> Fold:
        """Rows of the weight, and the bias, times g."""
        g = self.g.to(weight)
        return weight * g[:, None], None if bias is None else bias * g
