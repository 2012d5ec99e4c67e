"""LoRA's pair of matrices."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from sparsearch.spaces.kinds.module_base import LowRankUnit

__all__ = ["LoraUnit"]


class LoraUnit(LowRankUnit):
    """All rank units of one position as one pair of matrices: A (rank, in), B (out, rank)."""

    shared: ClassVar[Mapping[str, int]] = {"A": 0, "B": 1}

    def __init__(self, in_features: int, out_features: int, rank: int, scale: float) -> None:
        super().__init__()
        self.A = nn.Parameter(torch.empty(rank, in_features))
        self.B = nn.Parameter(torch.zeros(out_features, rank))
        self.scale = scale
        nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))

    def factors(self) -> tuple[Tensor, Tensor]:
        """A and B."""
        return self.A, self.B

    def inner(self, h: Tensor, gate: Tensor | None) -> Tensor:
        """Scale and gates."""
        return h * self.scale if gate is None else h * (gate * self.scale).to(h.dtype)
