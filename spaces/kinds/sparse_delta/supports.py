"""Supports: which places of a weight matrix a sparse change may touch."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from sparsearch.spaces.kinds.decomposition import exact_svd
from sparsearch.spaces.values import has_values

__all__ = ["Places", "find_support", "largest"]

Places = tuple[Tensor, Tensor]
"""Rows and columns, int32, the most wanted place first."""


def find_support(matrix: Tensor, count: int, by: str, name: str = "") -> Places:
    """The first ``count`` places of a ranked list of all places of a matrix.

    A shorter support is the beginning of a longer one, and equal places are taken row by row, so that the same numbers
    give the same places in any floating-point type that holds them. ``residual`` ranks by what a low-rank
    approximation leaves over (what DSEE, arXiv 2111.00160, takes from GreBsmo), ``magnitude`` and
    ``gradient`` by absolute value, ``random`` by chance.

    Args:
        matrix: (out, in); the weight, or for ``gradient`` the gradient of the loss by it.
        count: At most out x in.
        by: One of ``SUPPORTS``.
        name: Seed of ``random``; the others do not read it.

    Example:
        >>> rows, cols = find_support(torch.tensor([[1.0, -5.0], [3.0, 2.0]]), 2, "magnitude")
        >>> rows.tolist(), cols.tolist()
        ([0, 1], [1, 0])
    """
    if by == "residual":
        return largest(_residual(matrix), count)
    if by == "random":
        return largest(_chance(matrix, name), count)
    return largest(matrix.abs(), count)


def largest(score: Tensor, count: int) -> Places:
    """Places of the largest scores; exactly ``count``, equal ones row by row. The first ones of a shape alone."""
    flat = score.flatten().nan_to_num()
    if not has_values(score):
        above, tied = (
            torch.arange(count, device=score.device),
            flat.new_empty(0, dtype=torch.int64),
        )
    elif count == 0:
        above = tied = flat.new_empty(0, dtype=torch.int64)
    else:  # a stable sort of the whole matrix takes 20 times as long
        edge = torch.topk(flat, count).values[-1]
        above = (flat > edge).nonzero().flatten()
        above = above[torch.sort(flat[above], descending=True, stable=True).indices]
        tied = (flat == edge).nonzero().flatten()[: count - len(above)]
    found = torch.cat([above, tied])
    width = score.shape[1]
    return (found // width).int(), (found % width).int()


def _residual(matrix: Tensor) -> Tensor:
    """|W - W_r|, with r a quarter of the narrower side, so that something is left; what float32 rounds away is zero.

    On the CPU and in float64, so that all processors rank alike.
    """
    rank = min(matrix.shape) // 4
    if rank == 0:
        return matrix.abs()
    left, values, right = exact_svd(matrix, rank)
    rest = (matrix.cpu().double() - (left * values) @ right).abs()
    rounding = torch.finfo(torch.float32).eps * max(matrix.shape) * values[0]
    return torch.where(rest > rounding, rest, 0.0).to(matrix.device)


def _chance(matrix: Tensor, name: str) -> Tensor:
    """Uniform numbers, equal for equal names on every device."""
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:7], "big")
    return torch.rand(matrix.shape, generator=torch.Generator().manual_seed(seed)).to(
        matrix.device
    )
