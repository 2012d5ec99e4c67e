"""Truncated singular value decompositions that always give the same answer."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["truncated_svd"]

_SPARE = 8
_ITERATIONS = 4


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
