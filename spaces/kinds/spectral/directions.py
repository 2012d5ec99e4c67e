"""Directions that nobody has to store: they are made again, number for number, from the backbone or from a name."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from sparsearch.spaces.kinds.decomposition import truncated_svd

__all__ = ["drawn", "of_weight"]


def of_weight(weight: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Leading singular vectors of a weight (out, in) in bfloat16: left (out, count), right (count, in).

    On the CPU and in float64, so that other processors round to the same bfloat16.
    """
    left, _, right = truncated_svd(weight.cpu(), count, torch.float64)
    return left.bfloat16().contiguous(), right.bfloat16().contiguous()


def drawn(name: str, shape: tuple[int, int], count: int) -> tuple[Tensor, Tensor]:
    """Random vectors of length one on average, in bfloat16: left (out, count), right (count, in).

    The first of more vectors are those of fewer.

    Args:
        name: The seed.
        shape: (out, in).
        count: Of vectors.

    >>> left, right = drawn("layers.0.attn.q", (6, 4), 3)
    >>> left.shape, right.shape, torch.equal(drawn("layers.0.attn.q", (6, 4), 2)[1], right[:2])
    (torch.Size([6, 3]), torch.Size([3, 4]), True)
    """
    sides = []
    for side, width in zip(("left", "right"), shape, strict=True):
        digest = hashlib.sha256(f"{side} {name}".encode()).digest()
        stream = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
        # Vector by vector: how torch draws depends on how much it is asked for.
        rows = [torch.randn(width, generator=stream) for _ in range(count)]
        sides.append((torch.stack(rows) / width**0.5).bfloat16())
    left, right = sides
    return left.T.contiguous(), right
