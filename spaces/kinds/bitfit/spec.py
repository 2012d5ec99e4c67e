"""BitFit (Ben Zaken et al. 2022): a trained shift of a bias, also where the backbone has none."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from sparsearch.spaces.families.position import Position
from sparsearch.spaces.kinds.base import Kind, Stage

if TYPE_CHECKING:
    from torch import nn

    from sparsearch.spaces.kinds.bitfit.module import BitFitUnit

__all__ = ["BitFit"]


@dataclass(frozen=True)
class BitFit(Kind):
    """A bias added to a linear's or a norm's output."""

    name: ClassVar[str] = "bitfit"
    not_on_quantised: ClassVar[str] = ""
    not_in_peft: ClassVar[str] = ""

    def accepts(self, position: Position) -> bool:
        """Any linear or norm."""
        return position.role in ("linear", "norm")

    def stage(self, position: Position) -> Stage:
        """Beside the module: the bias depends on nothing."""
        return "parallel"

    def params(self, position: Position, size: int) -> int:
        """One per output feature."""
        return position.out_features

    def build(self, position: Position, size: int, host: nn.Module) -> BitFitUnit:
        """Zero."""
        from sparsearch.spaces.kinds.bitfit.module import BitFitUnit

        return BitFitUnit(position.out_features)
