"""What every attached unit computes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["Basis", "Fold", "LowRankUnit", "Unit", "add_low_rank", "in_type_of"]


Basis = tuple[Tensor, ...]
"""Frozen parts of the largest unit at a position; smaller ones take the first of each."""


Fold = tuple[Tensor | None, Tensor | None]
"""What is added to a weight and to a bias; None adds nothing."""


class Unit(nn.Module):
    """An attached module. ``forward(x, gate)`` returns what is added to the stage's tensor.

    ``gate`` is None (the unit is chosen) or a vector with one entry per candidate of the unit.

    Attributes:
        shared: Parameter -> the dimension along which the candidates of the unit share it out;
            a parameter that is not named belongs to all of them alike.
        shares: Entries of each candidate along that dimension; empty where there are equally many.
        constant: Whether the change is one vector (out), whatever x is.
    """

    shared: ClassVar[Mapping[str, int]] = {}
    shares: tuple[int, ...] = ()
    constant: ClassVar[bool] = False

    def align(self, *basis: Tensor) -> None:
        """Take frozen parts from what the kind's ``basis`` found."""
        raise TypeError(f"{type(self).__name__} has nothing to align")

    def forward(self, x: Tensor, gate: Tensor | None) -> Tensor:
        """Change caused by the unit: x is (..., features in), the result (..., features out)."""
        raise TypeError(f"{type(self).__name__} defines no forward")

    def dense(self, weight: Tensor, gate: Tensor | None) -> Tensor:
        """The change of a parallel, linear unit as one of its host's weight (out, in), which gives type and device."""
        columns = self(torch.eye(weight.shape[1], dtype=weight.dtype, device=weight.device), gate)
        return columns.to(weight.dtype).T  # type: ignore[no-any-return]

    def loaded(self) -> None:
        """Told that its tensors have been loaded."""

    def fold(self, weight: Tensor, bias: Tensor | None) -> Fold:
        """The ungated change, as one of the host's weight and bias; units of mergeable kinds define it.

        Args:
            weight: (out, in) of a linear or of the unit's slice of a fused one; (features) of a norm. In
                float32 or wider, with what earlier stages folded.
            bias: (out) likewise; None where there is none.
        """
        raise TypeError(f"{type(self).__name__} does not fold")


class LowRankUnit(Unit):
    """A unit whose change is a product of thin matrices, B inner(A x); such units of one host run as one.

    ``factors`` gives A (k, in) and B (out, k); ``inner`` works on the k numbers between them, and is
    where gates act.
    """

    def factors(self) -> tuple[Tensor, Tensor]:
        """A (k, in) and B (out, k)."""
        raise TypeError(f"{type(self).__name__} defines no factors")

    def inner(self, h: Tensor, gate: Tensor | None) -> Tensor:
        """(..., k) -> (..., k)."""
        raise TypeError(f"{type(self).__name__} defines no inner map")

    def forward(self, x: Tensor, gate: Tensor | None) -> Tensor:
        """X (..., in) -> (..., out)."""
        down, up = (in_type_of(x, factor) for factor in self.factors())
        return F.linear(self.inner(F.linear(x, down), gate), up)

    def dense(self, weight: Tensor, gate: Tensor | None) -> Tensor:
        """The product of the factors: ``inner`` is linear, and runs on each column of A."""
        down, up = (factor.to(weight) for factor in self.factors())
        return F.linear(up, self.inner(down.T, gate))

    def fold(self, weight: Tensor, bias: Tensor | None) -> Fold:
        """To the weight."""
        return self.dense(weight, None), None


def in_type_of(x: Tensor, factor: Tensor) -> Tensor:
    """A factor as a product with x needs it; autocast sees to that itself."""
    return factor if torch.is_autocast_enabled(x.device.type) else factor.to(x.dtype)


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
