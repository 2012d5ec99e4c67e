"""BitFit (Ben Zaken et al. 2022): a trained shift of a bias, also where the backbone has none."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from sparsearch.spaces.kinds.base import Fold, Kind, Stage, Unit
from sparsearch.spaces.positions import Position

__all__ = ["BitFit", "BitFitUnit"]


@dataclass(frozen=True)
class BitFit(Kind):
    """A bias added to a linear's or a norm's output."""

    name: ClassVar[str] = "bitfit"

    def accepts(self, position: Position) -> bool:
        """Any linear or norm."""
        return position.role in ("linear", "norm")

    def stage(self, position: Position) -> Stage:
        """Beside the module: the bias depends on nothing."""
        return "parallel"

    def params(self, position: Position, size: int) -> int:
        """One per output feature."""
        return position.out_features

    def build(self, position: Position, size: int, host: nn.Module) -> BitFitUnit:
        """Zero."""
        return BitFitUnit(position.out_features)


class BitFitUnit(Unit):
    """bias (out)."""

    constant: ClassVar[bool] = True

    def __init__(self, out_features: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(out_features))

    def forward(self, x: Tensor, gate: Tensor | None) -> Tensor:
        """The bias, whatever x is; broadcasts over tokens."""
        return self.bias if gate is None else self.bias * gate

    def fold(self, weight: Tensor, bias: Tensor | None) -> Fold:
        """To the bias."""
        return None, self.bias.to(weight)
