"""A shift of a bias."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from sparsearch.spaces.kinds.module_base import Fold, Unit

__all__ = ["BitFitUnit"]


class BitFitUnit(Unit):
    """bias (out)."""

    constant: ClassVar[bool] = True

    def __init__(self, out_features: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(out_features))

    def forward(self, x: Tensor, gate: Tensor | None) -> Tensor:
        """The bias, whatever x is; broadcasts over tokens.

        A tensor of its own: libraries that shard or offload free a parameter's memory after the forward.
        """
        return self.bias.clone() if gate is None else self.bias * gate

    def fold(self, weight: Tensor, bias: Tensor | None) -> Fold:
        """To the bias."""
        return None, self.bias.to(weight)
