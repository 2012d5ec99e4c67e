"""Truncated singular value decompositions that always give the same answer."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["truncated_svd"]

_SPARE = 8
_ITERATIONS = 4


def truncated_svd(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """Leading singular vectors and values in float32: left (out, k), values (k), right (k, in).

    By a randomised decomposition (Halko et al. 2011) that draws from a stream of its own, on any device the
    same one: the same matrix always gives the same vectors.
    """
    wide = matrix.shape[0] < matrix.shape[1]
    tall = matrix.float().T if wide else matrix.float()
    spare = min(rank + _SPARE, *matrix.shape)
    stream = torch.Generator().manual_seed(0)
    start = torch.randn(tall.shape[1], spare, generator=stream).to(tall.device)
    basis = torch.linalg.qr(tall @ start).Q
    for _ in range(_ITERATIONS):
        basis = torch.linalg.qr(tall.T @ basis).Q
        basis = torch.linalg.qr(tall @ basis).Q
    inner, values, right = torch.linalg.svd(basis.T @ tall, full_matrices=False)
    left, right = (right.T, (basis @ inner).T) if wide else (basis @ inner, right)
    return left[:, :rank], values[:rank], right[:rank]
