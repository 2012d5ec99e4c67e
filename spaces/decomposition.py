"""Truncated singular value decompositions that always give the same answer."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["truncated_svd"]

_SPARE = 8
_ITERATIONS = 4


def truncated_svd(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """Leading singular vectors and values in float32: left (out, k), values (k), right (k, in).

    By a randomised decomposition (Halko et al. 2011) that draws from a stream of its own: the same
    matrix always gives the same vectors.
    """
    spare = min(rank + _SPARE, *matrix.shape)
    devices = [matrix.device] if matrix.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(0)
        left, values, right = torch.svd_lowrank(matrix.float(), q=spare, niter=_ITERATIONS)
    return left[:, :rank], values[:rank], right[:, :rank].T
