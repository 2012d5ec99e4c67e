"""Changes of single entries of a weight."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from sparsearch.spaces.units.base import Fold, Unit

__all__ = ["SparseDeltaUnit"]


class SparseDeltaUnit(Unit):
    """values (N) at frozen places rows (N), cols (N): output rows[i] gains scale * values[i] * x[cols[i]].

    No matrix (out, in) is made, unless a mask or merging asks for one. Products are summed in the values' type,
    also under autocast.
    """

    shared: ClassVar[Mapping[str, int]] = {"values": 0}

    def __init__(self, out_features: int, shares: Sequence[int], scale: float) -> None:
        super().__init__()
        count = sum(shares)
        self.values = nn.Parameter(torch.zeros(count))
        self.rows: Tensor
        self.cols: Tensor
        self.register_buffer("rows", torch.zeros(count, dtype=torch.int32))
        self.register_buffer("cols", torch.zeros(count, dtype=torch.int32))
        self.out_features = out_features
        self.shares = tuple(shares)
        self.scale = scale

    @torch.no_grad()
    def align(self, *basis: Tensor) -> None:
        """Take the first places."""
        for buffer, places in zip((self.rows, self.cols), basis, strict=True):
            buffer.copy_(places[: len(buffer)])

    def forward(self, x: Tensor, gate: Tensor | None) -> Tensor:
        """X (..., in) -> (..., out)."""
        lead = x.shape[:-1]
        taken = x.gather(-1, self.cols.long().expand(*lead, -1)) * self._scaled(gate)
        change = taken.new_zeros(*lead, self.out_features)
        return change.scatter_add_(-1, self.rows.long().expand(*lead, -1), taken)

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
