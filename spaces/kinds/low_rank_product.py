"""Products with low-rank weights, in the order that costs least."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from sparsearch.spaces.kinds.module_base import LowRankUnit

__all__ = [
    "add_low_rank",
]


class _Product(torch.autograd.Function):
    """Y (n, m), if there is one, plus X (n, k) times W (m, k) transposed, W being factors side by side.

    Side by side along dimension 0 or 1. Autograd would keep W until the backward pass, and compute the
    gradient of all of it: here W is joined anew, and only factors that train have theirs computed.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor | None, dim: int, *factors: Tensor) -> Tensor:
        ctx.save_for_backward(x, *factors)
        ctx.dim = dim
        w = _joined(factors, dim, x.dtype)
        return x @ w.T if y is None else torch.addmm(y, x, w.T)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Any, ...]:
        x, *factors = ctx.saved_tensors
        of_x = g @ _joined(factors, ctx.dim, x.dtype) if ctx.needs_input_grad[0] else None
        of_factors: list[Tensor | None] = [None] * len(factors)
        trained = [i for i in range(len(factors)) if ctx.needs_input_grad[3 + i]]
        if trained:
            ends = list(accumulate(factor.shape[ctx.dim] for factor in factors))
            span = slice(trained[0], trained[-1] + 1)
            start, end = ends[trained[0]] - factors[trained[0]].shape[ctx.dim], ends[trained[-1]]
            of_w = g[:, start:end].T @ x if ctx.dim == 0 else g.T @ x[:, start:end]
            of_factors[span] = of_w.split([f.shape[ctx.dim] for f in factors[span]], dim=ctx.dim)
        return of_x, g if ctx.needs_input_grad[1] else None, None, *of_factors


def _joined(factors: Sequence[Tensor], dim: int, dtype: torch.dtype) -> Tensor:
    return torch.cat([factor.to(dtype) for factor in factors], dim=dim)


def add_low_rank(
    y: Tensor,
    x: Tensor,
    units: Sequence[LowRankUnit],
    gates: Sequence[Tensor | None],
    vectors: Sequence[Tensor] = (),
) -> Tensor:
    """Y plus the changes of low-rank units fed with x, plus vectors: two thin products, one pass over y."""
    device = x.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
    downs, ups = zip(*(unit.factors() for unit in units), strict=True)
    rows = x.reshape(-1, x.shape[-1]).to(dtype)
    h = _Product.apply(rows, None, 0, *downs)  # type: ignore[no-untyped-call]
    parts = torch.split(h, [down.shape[0] for down in downs], dim=-1)
    inner = [unit.inner(p, gate) for unit, p, gate in zip(units, parts, gates, strict=True)]
    if vectors:  # as one more column, against ones
        ups = *ups, sum(vectors[1:], vectors[0])[:, None]
        inner.append(rows.new_ones(1).expand(len(rows), 1))
    flat = y.reshape(-1, y.shape[-1]).to(dtype)
    sums = _Product.apply(_joined(inner, -1, dtype), flat, 1, *ups)  # type: ignore[no-untyped-call]
    return sums.view_as(y).to(y.dtype)  # type: ignore[no-any-return]
