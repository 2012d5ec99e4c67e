"""A change of a norm's gain."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparsearch.spaces.kinds.module_base import Fold, Unit

__all__ = ["LNFitUnit"]


class LNFitUnit(Unit):
    """gain (features); ``centred`` for LayerNorm, else RMSNorm."""

    changes_gain: ClassVar[bool] = True

    def __init__(self, features: int, eps: float, centred: bool) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.zeros(features))
        self.eps = eps
        self.centred = centred

    def change(self, gate: Tensor | None) -> Tensor:
        """What the norm's own gain changes by: (features)."""
        return self.gain if gate is None else self.gain * gate

    def in_norm(self, x: Tensor, gate: Tensor | None) -> tuple[str, Tensor]:
        """The norm's own gain."""
        return "weight", self.change(gate)

    def forward(self, x: Tensor, gate: Tensor | None) -> Tensor:
        """X (..., features) -> the same shape."""
        gain = self.change(gate)
        norm = F.layer_norm if self.centred else F.rms_norm
        return norm(x.float(), gain.shape, weight=gain, eps=self.eps)

    def fold(self, weight: Tensor, bias: Tensor | None) -> Fold:
        """To the norm's gain."""
        return self.gain.to(weight), None
