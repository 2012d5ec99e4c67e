"""What heads and neurons share: units of the backbone that can be cut out, by a factor on what reads them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from sparsearch.spaces.families.position import Position
from sparsearch.spaces.kinds.base import Kind, KindRole, Stage, Statistics

if TYPE_CHECKING:
    from torch import nn

    from sparsearch.spaces.kinds.prunable.module import RemovalUnit

__all__ = ["Removal"]


@dataclass(frozen=True)
class Removal(Kind):
    """A candidate is something that may be cut; what it costs is negative.

    The gate multiplies the input of the linear that reads the units, so that any attention kernel
    stays in use; EarlyBERT's factor on the attention's probabilities is the same map.

    Attributes:
        compensate: ``none``: what is cut is zero. ``linear``: it is what a linear regression on the units that stay
            predicts, as Optimal Brain Surgeon does (Hassibi & Stork 1993); ``compact`` folds that into the weights of
            their reader. Gates of a search do not compensate.
    """

    mergeable: ClassVar[bool] = False
    not_in_peft: ClassVar[str] = "PEFT cuts nothing out of a backbone"
    not_on_quantised: ClassVar[str] = (
        "rows and columns cannot be taken off weights that share scales"
    )
    role: ClassVar[KindRole] = "remove"
    statistics: ClassVar[Statistics] = "input covariance"
    compensate: Literal["none", "linear"] = "none"

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
        from sparsearch.spaces.kinds.prunable.module import RemovalUnit

        width = position.in_features // position.units
        has_bias = getattr(host, "bias", None) is not None
        return RemovalUnit([part * width for part in self.sizes(position)], self.aligns, has_bias)
