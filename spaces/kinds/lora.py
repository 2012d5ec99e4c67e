"""LoRA (Hu et al. 2022, section 4.1) in rank-1 units: delta = scale * B diag(gate) A x."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from sparsearch.spaces.kinds.base import Kind, LowRankUnit, Stage
from sparsearch.spaces.positions import Position

__all__ = ["Lora", "LoraUnit"]


@dataclass(frozen=True)
class Lora(Kind):
    """Low-rank update of a linear, one candidate per rank, so that a search finds the rank too.

    Attributes:
        max_rank: Rank-1 candidates per position.
        alpha: Scale of each rank-1 unit (S3PET: alpha 16 at rank 1).
    """

    name: ClassVar[str] = "lora"
    max_rank: int = 4
    alpha: float = 16.0

    def accepts(self, position: Position) -> bool:
        """Any linear."""
        return position.role == "linear"

    def stage(self, position: Position) -> Stage:
        """Fed with the linear's input."""
        return "parallel"

    def sizes(self, position: Position) -> tuple[int, ...]:
        """One rank-1 candidate per rank; a rank above the matrix's own buys nothing."""
        return (1,) * min(self.max_rank, position.in_features, position.out_features)

    def params(self, position: Position, size: int) -> int:
        """Rank x (in + out)."""
        return size * (position.in_features + position.out_features)

    def flops_per_token(self, position: Position, size: int) -> int:
        """Two thin products."""
        return 2 * size * (position.in_features + position.out_features)

    def build(self, position: Position, size: int, host: nn.Module) -> LoraUnit:
        """A kaiming-uniform, B zero."""
        return LoraUnit(position.in_features, position.out_features, size, self.alpha)


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
