"""What heads and neurons share: units of the backbone that can be cut out, by a factor on what reads them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparsearch.spaces.kinds.base import Fold, Kind, Stage, Unit
from sparsearch.spaces.positions import Position

__all__ = ["Removal", "RemovalUnit", "ridged"]

_RIDGE = 0.01


@dataclass(frozen=True)
class Removal(Kind):
    """A candidate is something that may be cut; what it costs is negative.

    The gate multiplies the input of the linear that reads the units, so that any attention kernel
    stays in use; EarlyBERT's factor on the attention's probabilities is the same map.

    Attributes:
        compensate: ``none``: what is cut is zero. ``linear``: it is what a linear regression on the units that stay
            predicts, as Optimal Brain Surgeon does (Hassibi & Stork 1993); ``slim`` folds that into the weights of
            their reader. Gates of a search do not compensate.
    """

    mergeable: ClassVar[bool] = False
    removes: ClassVar[bool] = True
    choices: ClassVar[Mapping[str, tuple[str, ...]]] = {"compensate": ("none", "linear")}
    compensate: str = "none"

    @property
    def aligns(self) -> bool:
        """The regression is on the task's data."""
        return self.compensate == "linear"

    def accepts(self, position: Position) -> bool:
        """The places that can be cut in this way."""
        return position.role == self.name

    def stage(self, position: Position) -> Stage:
        """On the input of what reads the units, after all that is added to it."""
        return "cut"

    def least(self, position: Position) -> int:
        """Units that always stay."""
        return 1

    def params(self, position: Position, size: int) -> int:
        """Nothing is trained."""
        return 0

    def frozen_bytes(self, position: Position, size: int) -> int:
        """The regression's coefficients and constants, in bfloat16."""
        width = position.in_features // position.units
        return 2 * size * width * ((position.units - size) * width + 1) if self.aligns else 0

    def flops_per_token(self, position: Position, size: int) -> int:
        """Minus the rows of what feeds the units and the columns of what reads them."""
        feeds = [feed for feed in position.feeds if feed.per_token]
        rows = sum(feed.rows * feed.in_features for feed in feeds)
        columns = position.in_features * position.out_features
        return -2 * (rows + columns) * size // position.units

    def build(self, position: Position, size: int, host: nn.Module) -> RemovalUnit:
        """Cuts nothing until it is gated, or told what to cut."""
        width = position.in_features // position.units
        has_bias = getattr(host, "bias", None) is not None
        return RemovalUnit([part * width for part in self.sizes(position)], self.aligns, has_bias)


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
