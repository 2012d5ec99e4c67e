"""Scalings of shared random matrices."""

from __future__ import annotations

import functools
import hashlib
import math

import torch
from torch import Tensor, nn

from sparsearch.spaces.kinds.module_base import LowRankUnit

__all__ = ["VeraUnit", "drawn"]

_START = 0.1
"""Of d, as published."""


class VeraUnit(LowRankUnit):
    """d (rank) and b (out) train; A (rank, in) and B (out, rank) are drawn again from a seed wherever it is attached.

    They are bfloat16, Kaiming-uniform as published, and the first rows of what wider layers have, scaled.
    """

    def __init__(self, in_features: int, out_features: int, rank: int) -> None:
        super().__init__()
        self.d = nn.Parameter(torch.full((rank,), _START))
        self.b = nn.Parameter(torch.zeros(out_features))
        self.A: Tensor
        self.B: Tensor
        a = math.sqrt(6 / in_features) * drawn("A", in_features, rank).T
        b = math.sqrt(6 / rank) * drawn("B", out_features, rank)
        self.register_buffer("A", a.bfloat16().contiguous(), persistent=False)
        self.register_buffer("B", b.bfloat16(), persistent=False)

    def factors(self) -> tuple[Tensor, Tensor]:
        """A, and B with its rows scaled by b."""
        return self.A, self.b[:, None] * self.B

    def inner(self, h: Tensor, gate: Tensor | None) -> Tensor:
        """Scaled by d, and by the gate."""
        d = self.d if gate is None else self.d * gate
        return h * d.to(h.dtype)


@functools.lru_cache(maxsize=16)
def drawn(matrix: str, features: int, rank: int) -> Tensor:
    """Uniform numbers between -1 and 1 (features, rank); of more features the first are those of fewer.

    Args:
        matrix: The seed, with the rank.
        features: Rows.
        rank: Columns.

    >>> torch.equal(drawn("A", 3, 4), drawn("A", 5, 4)[:3]), torch.equal(drawn("A", 3, 4), drawn("B", 3, 4))
    (True, False)
    """
    digest = hashlib.sha256(f"vera {matrix} {rank}".encode()).digest()
    stream = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
    # Row by row: how torch draws depends on how much it is asked for.
    return torch.stack([2 * torch.rand(rank, generator=stream) - 1 for _ in range(features)])
