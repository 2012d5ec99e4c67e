"""DoRA's pair of matrices and its magnitudes."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparsearch.spaces.kinds.module_base import Fold, Unit, in_type_of

__all__ = ["DoraUnit"]


class DoraUnit(Unit):
    """A (rank, in), B (out, rank), and magnitude (out): by how much a row is longer than that of the weight.

    The length of a row of V = W + scale B A is a constant to gradients (section 4.3 of the paper). It is found from
    |W|^2, W A^T and A A^T: no other matrix (out, in) is made.
    """

    reads_host: ClassVar[bool] = True

    def __init__(self, in_features: int, out_features: int, rank: int, scale: float) -> None:
        super().__init__()
        self.A = nn.Parameter(torch.empty(rank, in_features))
        self.B = nn.Parameter(torch.zeros(out_features, rank))
        self.magnitude = nn.Parameter(torch.zeros(out_features))
        self.scale = scale
        nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))

    def forward(  # type: ignore[override]  # it reads its host
        self, x: Tensor, gate: Tensor | None, weight: Tensor, output: Tensor
    ) -> Tensor:
        """X (..., in) -> (..., out), with W (out, in) and W x (..., out)."""
        factor = self._factor(weight)
        low = F.linear(F.linear(x, in_type_of(x, self.A)), in_type_of(x, self.B)) * self.scale
        change = (factor - 1) * output + factor * low
        return change if gate is None else change * gate.to(change.dtype)

    def dense(self, weight: Tensor, gate: Tensor | None) -> Tensor:
        """W' - W."""
        factor = self._factor(weight)[:, None]
        change = (factor - 1) * weight + factor * self.scale * (self.B @ self.A)
        return (change if gate is None else change * gate).to(weight.dtype)

    def fold(self, weight: Tensor, bias: Tensor | None) -> Fold:
        """To the weight."""
        return self.dense(weight, None), None

    def _factor(self, weight: Tensor) -> Tensor:
        """What multiplies each row of V: m / |V| (out). A row of zeros has the length 0, and stays."""
        with torch.no_grad(), torch.autocast(weight.device.type, enabled=False):
            own, down = weight.to(self.A.dtype), self.A.detach()
            up = self.B.detach() * self.scale
            square = own.square().sum(1)
            crossed = ((own @ down.T) * up).sum(1)
            added = (up @ (down @ down.T) * up).sum(1)
            tiny = torch.finfo(square.dtype).tiny
            changed = (square + 2 * crossed + added).clamp_min(tiny).sqrt()
        return (square.sqrt() + self.magnitude) / changed
