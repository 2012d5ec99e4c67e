"""A factor that cuts heads or neurons."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from sparsearch.spaces.kinds.module_base import Fold, Unit

__all__ = ["RemovalUnit", "ridged"]


_RIDGE = 0.01


class RemovalUnit(Unit):
    """One factor per candidate on its features.

    Attributes:
        which: Numbers of the candidates that are cut where there are no gates.
        removed: (features) 1 where that cuts.
        gone: Indices of these features; ``kept`` those of the others.
        stand_in: (removed features, kept features + 1) what predicts the ones from the others, the last column the
            constant (zero where the reader has no bias); zero until it is aligned, and without rows where nothing
            compensates.
    """

    def __init__(
        self, widths: Sequence[int], compensates: bool = False, constant: bool = True
    ) -> None:
        super().__init__()
        self.removed: Tensor
        self.widths: Tensor
        self.stand_in: Tensor
        self.gone: Tensor
        self.kept: Tensor
        self.register_buffer("widths", torch.tensor(widths), persistent=False)
        self.register_buffer("removed", torch.zeros(sum(widths)), persistent=False)
        empty = torch.zeros(0, sum(widths) + 1, dtype=torch.bfloat16)
        self.register_buffer("stand_in", empty, persistent=compensates)
        self.register_buffer("gone", torch.zeros(0, dtype=torch.int64), persistent=False)
        self.register_buffer("kept", torch.arange(sum(widths)), persistent=False)
        self.compensates = compensates
        self.constant_term = constant
        self.which: tuple[int, ...] = ()

    def cut(self, which: Sequence[int]) -> None:
        """Cut these candidates."""
        self.which = tuple(which)
        gate = torch.zeros(len(self.widths), device=self.removed.device)
        gate[list(which)] = 1.0
        self.removed.copy_(self.spread(gate))
        self.gone = self.removed.nonzero().flatten()
        self.kept = (self.removed == 0).nonzero().flatten()
        if self.compensates:
            self.stand_in = self.stand_in.new_zeros(len(self.gone), len(self.kept) + 1)

    @torch.no_grad()
    def align(self, *basis: Tensor) -> None:
        """Regress what is cut on what stays.

        Args:
            basis: Covariance (features, features) and mean (features) of the features; more is ignored.
        """
        gone, kept = self.gone, self.kept
        if len(gone):
            moment, mean = basis[0].double(), basis[1].double()
            if not self.constant_term:  # a regression through the origin
                moment, mean = moment + torch.outer(mean, mean), torch.zeros_like(mean)
            covariance = ridged(moment)
            slope = torch.linalg.solve(covariance[kept][:, kept], covariance[kept][:, gone]).T
            constant = mean[gone] - slope @ mean[kept]
            self.stand_in.copy_(torch.cat([slope, constant[:, None]], dim=1))

    def spread(self, gate: Tensor) -> Tensor:
        """One entry per candidate -> one per feature."""
        return torch.repeat_interleave(gate, self.widths, output_size=self.removed.shape[0])

    def forward(self, x: Tensor, gate: Tensor | None) -> Tensor:
        """X (..., features) -> what is left of it, the same shape."""
        if gate is None and len(self.stand_in):
            slope, constant = self.stand_in[:, :-1].to(x.dtype), self.stand_in[:, -1].to(x.dtype)
            predicted = F.linear(x.index_select(-1, self.kept), slope, constant)
            return x.index_copy(-1, self.gone, predicted.to(x.dtype))
        removed = self.removed if gate is None else self.spread(gate)
        return x * (1 - removed).to(x.dtype)

    def fold(self, weight: Tensor, bias: Tensor | None) -> Fold:
        """The reader's weight takes what stands in for the features that are cut; their columns become zero."""
        gone, kept = self.gone, self.kept
        through = weight[:, gone] @ self.stand_in.to(weight)
        change = torch.zeros_like(weight)
        change[:, kept] = through[:, :-1]
        change[:, gone] = -weight[:, gone]
        return change, through[:, -1] if self.constant_term else None


def ridged(covariance: Tensor) -> Tensor:
    """A covariance (features, features) in float64, with 1% more on its diagonal so that it has an inverse."""
    wide = covariance.double()
    diagonal = wide.diagonal()
    return wide + torch.diag(_RIDGE * diagonal + 1e-8 * diagonal.mean() + 1e-12)
