"""LNFit (S3PET, appendix A): a trained change of a norm's gain, for LayerNorm and RMSNorm."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparsearch.spaces.kinds.base import Fold, Kind, Stage, Unit
from sparsearch.spaces.positions import Position

__all__ = ["LNFit", "LNFitUnit"]


@dataclass(frozen=True)
class LNFit(Kind):
    """delta = gain * normalised(x), so the norm's gain becomes weight + gain."""

    name: ClassVar[str] = "lnfit"

    def accepts(self, position: Position) -> bool:
        """Any norm."""
        return position.role == "norm"

    def stage(self, position: Position) -> Stage:
        """Fed with the norm's input."""
        return "parallel"

    def params(self, position: Position, size: int) -> int:
        """One per feature."""
        return position.out_features

    def build(self, position: Position, size: int, host: nn.Module) -> LNFitUnit:
        """Zero; the epsilon and the form of the norm are read from the backbone's module."""
        centred = isinstance(host, nn.LayerNorm)
        eps = host.eps if centred else getattr(host, "variance_epsilon", None)
        return LNFitUnit(position.out_features, float(eps), centred)  # type: ignore[arg-type]


class LNFitUnit(Unit):
    """gain (features); ``centred`` for LayerNorm, else RMSNorm."""

    def __init__(self, features: int, eps: float, centred: bool) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.zeros(features))
        self.eps = eps
        self.centred = centred

    def change(self, gate: Tensor | None) -> Tensor:
        """What the norm's own gain changes by: (features)."""
        return self.gain if gate is None else self.gain * gate

    def forward(self, x: Tensor, gate: Tensor | None) -> Tensor:
        """X (..., features) -> the same shape."""
        gain = self.change(gate)
        norm = F.layer_norm if self.centred else F.rms_norm
        return norm(x.float(), gain.shape, weight=gain, eps=self.eps)

    def fold(self, weight: Tensor, bias: Tensor | None) -> Fold:
        """To the norm's gain."""
        return self.gain.to(weight), None
