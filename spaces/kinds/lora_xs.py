"""LoRA-XS (Balazy et al. 2024, arXiv 2405.17604) in small blocks: delta = sum_k gate_k U_k R_k V_k^T x."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparsearch.spaces.kinds.base import LowRankUnit, Stage
from sparsearch.spaces.positions import Position, weight_at

__all__ = ["LoraXS", "LoraXSUnit"]

_SPARE = 8
_ITERATIONS = 4


@dataclass(frozen=True)
class LoraXS:
    """A trained rank x rank core between two frozen bases, one candidate per block of directions.

    A block costs rank^2 parameters whatever the width of the layer, so that even budgets of a few
    hundred parameters reach many positions. The bases are stored with the module; they are not trained.

    Attributes:
        rank: Directions of one block.
        max_blocks: Blocks offered per position; the first holds the leading directions.
        scale: Of the change.
    """

    name: ClassVar[str] = "lora_xs"
    mergeable: ClassVar[bool] = True
    aligns: ClassVar[bool] = True
    default_on: ClassVar[tuple[str, ...]] = ("*",)
    rank: int = 8
    max_blocks: int = 4
    scale: float = 1.0

    def accepts(self, position: Position) -> bool:
        """Any linear that is wide enough for one block."""
        narrow = min(position.in_features, position.out_features)
        return position.role == "linear" and narrow >= self.rank

    def stage(self, position: Position) -> Stage:
        """Fed with the linear's input."""
        return "parallel"

    def sizes(self, position: Position) -> tuple[int, ...]:
        """One candidate per block."""
        fit = min(position.in_features, position.out_features) // self.rank
        return (1,) * min(self.max_blocks, fit)

    def params(self, position: Position, size: int) -> int:
        """The cores."""
        return size * self.rank**2

    def frozen(self, position: Position, size: int) -> int:
        """The bases."""
        return size * self.rank * (position.in_features + position.out_features)

    def flops_per_token(self, position: Position, size: int) -> int:
        """Into the basis, through the cores (as one block-diagonal matrix), and out again."""
        inner = size * self.rank
        return 2 * inner * (position.in_features + inner + position.out_features)

    def build(self, position: Position, size: int, host: nn.Module) -> LoraXSUnit:
        """Cores zero; bases from the singular vectors of the backbone's weight, as published."""
        unit = LoraXSUnit(position.in_features, position.out_features, size, self.rank, self.scale)
        unit.align(weight_at(position, host).detach())
        return unit


class LoraXSUnit(LowRankUnit):
    """cores (blocks, rank, rank); frozen bases left (out, blocks * rank) and right (blocks * rank, in)."""

    shared: ClassVar[Mapping[str, int]] = {"cores": 0}

    def __init__(
        self, in_features: int, out_features: int, blocks: int, rank: int, scale: float
    ) -> None:
        super().__init__()
        self.cores = nn.Parameter(torch.zeros(blocks, rank, rank))
        self.left: Tensor
        self.right: Tensor
        self.register_buffer("left", torch.zeros(out_features, blocks * rank))
        self.register_buffer("right", torch.zeros(blocks * rank, in_features))
        self.scale = scale

    def align(self, matrix: Tensor) -> None:
        """Take the leading singular vectors of a matrix (out, in) as bases."""
        count = self.right.shape[0]
        matrix = matrix.to(self.left.device).float()
        spare = min(count + _SPARE, *matrix.shape)
        left, _, right = torch.svd_lowrank(matrix, q=spare, niter=_ITERATIONS)
        with torch.no_grad():
            self.left.copy_(left[:, :count])
            self.right.copy_(right[:, :count].T)

    def factors(self) -> tuple[Tensor, Tensor]:
        """The bases."""
        return self.right, self.left

    def inner(self, h: Tensor, gate: Tensor | None) -> Tensor:
        """The cores, as one block-diagonal matrix."""
        cores = self.cores * self.scale
        if gate is not None:
            cores = cores * gate.to(cores.dtype)[:, None, None]
        return F.linear(h, _block_diagonal(cores))


def _block_diagonal(blocks: Tensor) -> Tensor:
    """(blocks, rank, rank) -> (blocks * rank, blocks * rank)."""
    count, rank, _ = blocks.shape
    if count == 1:
        return blocks[0]
    apart = torch.eye(count, dtype=blocks.dtype, device=blocks.device)[:, None, :, None]
    return (blocks[:, :, None, :] * apart).reshape(count * rank, count * rank)
