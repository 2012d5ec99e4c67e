"""Spectral units: trained values on frozen pairs of singular directions, delta = sum_k s_k u_k v_k^T x.

The form of SVF and SVDiff (Sun et al. 2022; Han et al. 2023), on directions that the task chooses: the singular
vectors of the loss's gradient, as LoRA-GA takes them, instead of the weight's own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from sparsearch.spaces.decomposition import truncated_svd
from sparsearch.spaces.kinds.base import Basis, Kind, LowRankUnit, Stage
from sparsearch.spaces.positions import Position, weight_at

__all__ = ["Spectral", "SpectralUnit"]


@dataclass(frozen=True)
class Spectral(Kind):
    """One trained number per direction, one candidate per block of directions.

    A block costs the same few parameters whatever the width of the layer, so that even budgets of a
    few hundred parameters reach many positions. The directions are stored, not trained.

    Attributes:
        block: Directions of one candidate.
        max_blocks: Candidates per position; the first holds the leading directions.
    """

    name: ClassVar[str] = "spectral"
    block: int = 16
    max_blocks: int = 8

    @property
    def aligns(self) -> bool:
        """The gradient chooses the directions."""
        return True

    def accepts(self, position: Position) -> bool:
        """Any linear that is wide enough for one block."""
        narrow = min(position.in_features, position.out_features)
        return position.role == "linear" and narrow >= self.block

    def stage(self, position: Position) -> Stage:
        """Fed with the linear's input."""
        return "parallel"

    def sizes(self, position: Position) -> tuple[int, ...]:
        """One candidate per block."""
        fit = min(position.in_features, position.out_features) // self.block
        return (1,) * min(self.max_blocks, fit)

    def params(self, position: Position, size: int) -> int:
        """One per direction."""
        return size * self.block

    def frozen_bytes(self, position: Position, size: int) -> int:
        """The directions, two bytes a number."""
        return 2 * size * self.block * (position.in_features + position.out_features)

    def basis(self, position: Position, matrix: Tensor) -> Basis:
        """Leading singular vectors in bfloat16: left (out, k), right (k, in)."""
        left, _, right = truncated_svd(matrix, sum(self.sizes(position)) * self.block)
        return left.bfloat16().contiguous(), right.bfloat16().contiguous()

    def flops_per_token(self, position: Position, size: int) -> int:
        """Onto the directions and out again."""
        return 2 * size * self.block * (position.in_features + position.out_features)

    def build(self, position: Position, size: int, host: nn.Module) -> SpectralUnit:
        """Values zero; until it is aligned with a task, the directions are the weight's own."""
        unit = SpectralUnit(position.in_features, position.out_features, size, self.block)
        unit.align(*self.basis(position, weight_at(position, host).detach()))
        return unit


class SpectralUnit(LowRankUnit):
    """values (blocks, block); frozen directions left (out, blocks * block), right (blocks * block, in).

    Directions are bfloat16: products under autocast need no cast, and a file half the room.
    """

    shared: ClassVar[Mapping[str, int]] = {"values": 0}

    def __init__(self, in_features: int, out_features: int, blocks: int, block: int) -> None:
        super().__init__()
        self.values = nn.Parameter(torch.zeros(blocks, block))
        self.left: Tensor
        self.right: Tensor
        self.register_buffer(
            "left", torch.zeros(out_features, blocks * block, dtype=torch.bfloat16)
        )
        self.register_buffer(
            "right", torch.zeros(blocks * block, in_features, dtype=torch.bfloat16)
        )

    @torch.no_grad()
    def align(self, *basis: Tensor) -> None:
        """Take the first directions."""
        left, right = basis
        count = self.right.shape[0]
        self.left.copy_(left[:, :count])
        self.right.copy_(right[:count])

    def factors(self) -> tuple[Tensor, Tensor]:
        """The directions."""
        return self.right, self.left

    def inner(self, h: Tensor, gate: Tensor | None) -> Tensor:
        """Values and gates."""
        values = self.values if gate is None else self.values * gate[:, None]
        return h * values.flatten().to(h.dtype)
