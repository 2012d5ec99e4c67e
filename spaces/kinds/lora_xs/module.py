"""A core between frozen directions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparsearch.spaces.kinds.decomposition import exact_svd
from sparsearch.spaces.kinds.module_base import LowRankUnit

__all__ = ["LoraXSUnit", "core_of", "directions_of"]


class LoraXSUnit(LowRankUnit):
    """values (N): a core (rank, rank) shell by shell, or its beginning; directions left (out, rank), right (rank, in).

    Directions are bfloat16, and no part of a file: the weight gives them again.
    """

    shared: ClassVar[Mapping[str, int]] = {"values": 0}

    def __init__(
        self, in_features: int, out_features: int, rank: int, shares: Sequence[int]
    ) -> None:
        super().__init__()
        self.values = nn.Parameter(torch.zeros(sum(shares)))
        self.left: Tensor
        self.right: Tensor
        left = torch.zeros(out_features, rank, dtype=torch.bfloat16)
        right = torch.zeros(rank, in_features, dtype=torch.bfloat16)
        self.register_buffer("left", left, persistent=False)
        self.register_buffer("right", right, persistent=False)
        self.shares = tuple(shares)

    @torch.no_grad()
    def align(self, *basis: Tensor) -> None:
        """Take the first directions."""
        left, right = basis
        rank = self.right.shape[0]
        self.left.copy_(left[:, :rank])
        self.right.copy_(right[:rank])

    def factors(self) -> tuple[Tensor, Tensor]:
        """The directions."""
        return self.right, self.left

    def inner(self, h: Tensor, gate: Tensor | None) -> Tensor:
        """The core, each candidate's entries times its gate."""
        values: Tensor = self.values
        if gate is not None:
            shares = torch.tensor(self.shares, device=values.device)
            values = values * gate.expand(len(shares)).repeat_interleave(
                shares, output_size=len(values)
            )
        return F.linear(h, core_of(values, self.right.shape[0]).to(h.dtype))


def core_of(values: Tensor, rank: int) -> Tensor:
    """The core (rank, rank) with these first entries (N): shell k holds the entries whose larger index is k.

    >>> core_of(torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0]), 3).tolist()
    [[1.0, 2.0, 5.0], [3.0, 4.0, 0.0], [0.0, 0.0, 0.0]]
    """
    k = torch.arange(rank, device=values.device)
    rows, cols = k[:, None], k[None, :]
    number = torch.where(rows < cols, cols * cols + rows, rows * rows + rows + cols)
    return F.pad(values, (0, rank * rank - len(values)))[number]


def directions_of(weight: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """A weight's (out, in) leading left singular vectors (out, rank), and right ones times values (rank, in).

    In bfloat16. Input times values as published, where a weight is (in, out).
    """
    left, values, right = exact_svd(weight, rank)
    return left.bfloat16().contiguous(), (values[:, None] * right).bfloat16().contiguous()
