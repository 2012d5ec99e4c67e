"""Values on frozen directions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from sparsearch.spaces.kinds.module_base import LowRankUnit

__all__ = ["SpectralUnit"]


class SpectralUnit(LowRankUnit):
    """values (blocks, block); frozen directions left (out, blocks * block), right (blocks * block, in).

    Directions are bfloat16: products under autocast need no cast, and a file half the room. They are no part of a file
    where they are not ``stored``.
    """

    shared: ClassVar[Mapping[str, int]] = {"values": 0}

    def __init__(
        self, in_features: int, out_features: int, blocks: int, block: int, stored: bool = True
    ) -> None:
        super().__init__()
        self.values = nn.Parameter(torch.zeros(blocks, block))
        self.left: Tensor
        self.right: Tensor
        self.register_buffer(
            "left", torch.zeros(out_features, blocks * block, dtype=torch.bfloat16), stored
        )
        self.register_buffer(
            "right", torch.zeros(blocks * block, in_features, dtype=torch.bfloat16), stored
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
