"""A slot: one unit at one position of a model."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sparsearch.spaces.kinds import Kind
from sparsearch.spaces.positions import Position
from sparsearch.spaces.units.base import Unit

__all__ = ["Slot"]


class Slot:
    """One unit at one position; ``gate`` is set while a supernet runs."""

    def __init__(self, unit: Unit, position: Position, kind: Kind) -> None:
        self.unit = unit
        self.kind = kind
        self.position = position
        self.gate: Tensor | None = None
        self.idle = False
        self.start = position.start
        self.width = position.out_features
        self.seen: Tensor | None = None

    @property
    def key(self) -> str:
        """Name of the unit among the attached ones."""
        return f"{self.position.name.replace('.', '/')}:{self.kind.name}"

    @property
    def changes_weight(self) -> bool:
        """Whether the unit, beside a linear, is one with a change of its weight."""
        return self.kind.mergeable and not self.unit.constant

    def delta(self, x: Tensor) -> Tensor:
        """The unit's change."""
        if not torch.is_autocast_enabled(x.device.type):
            x = x.to(next(self.unit.parameters()).dtype)
        change: Tensor = self.unit(x, self.gate)
        return change

    def add_to(self, y: Tensor, x: Tensor) -> Tensor:
        """Y plus the unit's change, on the unit's slice of a fused output."""
        change = self.delta(x).to(y.dtype)
        rest = y.shape[-1] - self.start - self.width
        if self.start or rest:
            change = nn.functional.pad(change, (self.start, rest))
        return y + change
