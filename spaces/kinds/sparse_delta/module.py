"""Changes of single entries of a weight."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from sparsearch.spaces.kinds.module_base import Fold, Unit

__all__ = ["SparseDeltaUnit"]


_AT_ONCE = 2**17
"""Products that are held at a time: half a megabyte of them."""


class _SparseProduct(torch.autograd.Function):
    """X (tokens, in) times the values (N) at rows and cols (N): (tokens, out).

    Some tokens at a time; the backward pass takes the inputs anew instead of keeping (tokens, N) of them.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, values: Tensor, rows: Tensor, cols: Tensor, out_features: int
    ) -> Tensor:
        ctx.save_for_backward(x, values, rows, cols)
        dtype = torch.promote_types(x.dtype, values.dtype)
        change = torch.zeros(len(x), out_features, dtype=dtype, device=x.device)
        for own, part in _parts(values, change, x):
            _add_at(own, rows, _taken(part, cols, dtype).mul_(values))
        return change

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, values, rows, cols = ctx.saved_tensors
        to_x, to_values = torch.zeros_like(x), torch.zeros_like(values)
        for own, part, g in _parts(values, to_x, x, gradient):
            taken = _taken(g, rows, gradient.dtype)
            if ctx.needs_input_grad[1]:
                to_values += _taken(part, cols, gradient.dtype).mul_(taken).sum(0)
            if ctx.needs_input_grad[0]:
                _add_at(own, cols, taken.mul_(values).to(x.dtype))
        return to_x, to_values, None, None, None


def _parts(values: Tensor, *tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The same few tokens of each tensor at a time."""
    tokens = max(1, _AT_ONCE // max(1, len(values)))
    return zip(*(torch.split(t, tokens) for t in tensors), strict=True)


def _taken(x: Tensor, places: Tensor, dtype: torch.dtype) -> Tensor:
    """A copy of x (tokens, features) at places (N): (tokens, N)."""
    return x.gather(1, places.long().expand(len(x), -1)).to(dtype)


def _add_at(x: Tensor, places: Tensor, change: Tensor) -> None:
    """Add (tokens, N) to x (tokens, features) at places (N)."""
    x.scatter_add_(1, places.long().expand(len(x), -1), change)


class SparseDeltaUnit(Unit):
    """values (N) at frozen places rows (N), cols (N): output rows[i] gains scale * values[i] * x[cols[i]].

    No matrix (out, in) is made, unless a mask or merging asks for one, nor one of (tokens, N). Products are summed in
    the values' type, also under autocast. Places are no part of a file where they are not ``stored``.
    """

    shared: ClassVar[Mapping[str, int]] = {"values": 0}

    def __init__(
        self, out_features: int, shares: Sequence[int], scale: float, stored: bool = True
    ) -> None:
        super().__init__()
        count = sum(shares)
        self.values = nn.Parameter(torch.zeros(count))
        self.rows: Tensor
        self.cols: Tensor
        self.register_buffer("rows", torch.zeros(count, dtype=torch.int32), stored)
        self.register_buffer("cols", torch.zeros(count, dtype=torch.int32), stored)
        self.stored = stored
        self.out_features = out_features
        self.shares = tuple(shares)
        self.scale = scale

    @torch.no_grad()
    def align(self, *basis: Tensor) -> None:
        """Take the first places."""
        for buffer, places in zip((self.rows, self.cols), basis, strict=True):
            buffer.copy_(places[: len(buffer)])

    def remade(self) -> tuple[Tensor, ...]:
        """The places, where they are not stored."""
        return () if self.stored else (self.rows, self.cols)

    def forward(self, x: Tensor, gate: Tensor | None) -> Tensor:
        """X (..., in) -> (..., out)."""
        change: Tensor = _SparseProduct.apply(  # type: ignore[no-untyped-call]
            x.reshape(-1, x.shape[-1]), self._scaled(gate), self.rows, self.cols, self.out_features
        )
        return change.view(*x.shape[:-1], self.out_features)

    def dense(self, weight: Tensor, gate: Tensor | None) -> Tensor:
        """Zero but for the places."""
        change, places = torch.zeros_like(weight), (self.rows.long(), self.cols.long())
        return change.index_put_(places, self._scaled(gate).to(weight), accumulate=True)

    def fold(self, weight: Tensor, bias: Tensor | None) -> Fold:
        """To single entries of the weight."""
        return self.dense(weight, None), None

    def _scaled(self, gate: Tensor | None) -> Tensor:
        """Values times scale and gates, one gate for each candidate's share of them."""
        if gate is None:
            return self.values * self.scale
        parts = zip(
            torch.split(self.values, list(self.shares)), gate.expand(len(self.shares)), strict=True
        )
        return torch.cat([values * (factor * self.scale) for values, factor in parts])
