"""LNFit (S3PET, appendix A): a trained change of a norm's gain, for LayerNorm and RMSNorm."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from sparsearch.spaces.families.position import Position
from sparsearch.spaces.kinds.base import Kind, Stage

if TYPE_CHECKING:
    from torch import nn

    from sparsearch.spaces.kinds.lnfit.module import LNFitUnit

__all__ = ["LNFit"]


@dataclass(frozen=True)
class LNFit(Kind):
    """delta = gain * normalised(x), so the norm's gain becomes weight + gain."""

    name: ClassVar[str] = "lnfit"
    not_on_quantised: ClassVar[str] = ""
    not_in_peft: ClassVar[str] = ""

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
        from torch import nn

        from sparsearch.spaces.kinds.lnfit.module import LNFitUnit

        centred = isinstance(host, nn.LayerNorm)
        eps = getattr(host, "variance_epsilon", getattr(host, "eps", None))
        return LNFitUnit(position.out_features, float(eps), centred)  # type: ignore[arg-type]
