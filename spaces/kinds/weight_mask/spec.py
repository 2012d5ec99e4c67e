"""Weight masks: unstructured pruning of a linear, y = x (M * (W + dW))^T + b (PST, Li et al. 2022; DSEE's S1).

dW is what low-rank and sparse units at the same position add: the mask comes after it, so that merging keeps
every zero. The mask removes the weights with the smallest score

    S = U * |W'| + mean(U * |W|) (alpha_low_rank A B + alpha_structured (R 1^T + 1 C^T)),    W' = W + dW

which is the magnitude (U = 1) until A, B, R and C have learnt how the loss moves each weight, by the straight-through
estimate dL/dS := dL/dM = G * W' with G = dL/d(M * W'). The mean puts the terms on one scale, whatever the backbone.
``saliency`` starts from what pruning a weight costs (Optimal Brain Damage, LeCun et al. 1989, with the Fisher diagonal
factored as K-FAC does): loss rises by W_ij^2 E[g_i^2] E[x_j^2] / 2, and U_ij is the root of the two moments.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from sparsearch.errors import ConfigError, StructureError
from sparsearch.spaces.families.position import Position, weight_at
from sparsearch.spaces.kinds.base import Kind, KindRole, Stage, Statistics
from sparsearch.spaces.kinds.options import Count, Scale

if TYPE_CHECKING:
    from torch import nn

    from sparsearch.spaces.kinds.weight_mask.module import WeightMaskUnit

__all__ = ["WeightMask"]


@dataclass(frozen=True)
class WeightMask(Kind):
    """Weights of a linear that are set to zero: no FLOPs saved by dense kernels, but fewer weights to store.

    A candidate prunes one more band of the matrix, 1 / ``bands`` of it; sizes add up. The last band stays.
    Scores are trained and left behind by merging. They belong to the matrix, not to its bands: a unit of
    any size has the same ones, and a structure pays for them once.

    Attributes:
        rank: Of the low-rank scores A B; 0 for none.
        structured: Whether each row and each column has a score.
        alpha_low_rank: Weight of A B in the score.
        alpha_structured: Weight of the scores of rows and columns.
        every: Steps from one mask to the next; the final one comes in time, whatever this is.
        pattern: ``N:M`` keeps N of each M neighbouring inputs, as one candidate of size M - N; ``bands``
            does not count then, a size is in units of 1 / M of the matrix.
        bands: Equal parts of a matrix.
        importance: ``magnitude`` (PST) or ``saliency``: by the task's data too.
    """

    name: ClassVar[str] = "weight_mask"
    not_in_peft: ClassVar[str] = "PEFT does not change the backbone's weights"
    not_on_quantised: ClassVar[str] = (
        "single weights cannot be set to zero where many share a scale"
    )
    role: ClassVar[KindRole] = "mask"
    statistics: ClassVar[Statistics] = "second moments"
    rank: Annotated[int, Field(ge=0)] = 8
    structured: bool = True
    alpha_low_rank: Scale = 1.0
    alpha_structured: Scale = 1.0
    every: Count = 50
    pattern: str = ""
    bands: Annotated[int, Field(ge=2)] = 20
    importance: Literal["magnitude", "saliency"] = "magnitude"

    def __post_init__(self) -> None:
        if self.pattern and not 0 < self.kept < self.group:
            raise ConfigError(
                [f"kind weight_mask: pattern must be N:M with 0 < N < M, not {self.pattern!r}"],
                'for example pattern: "2:4"',
            )

    @property
    def aligns(self) -> bool:
        """Saliency is on the task's data."""
        return self.importance == "saliency"

    @property
    def kept(self) -> int:
        """N of the pattern, 0 without one."""
        return self._pattern()[0]

    @property
    def group(self) -> int:
        """M of the pattern, 0 without one."""
        return self._pattern()[1]

    def _pattern(self) -> tuple[int, int]:
        found = re.fullmatch(r"(\d{1,4}):(\d{1,4})", self.pattern)
        return (int(found[1]), int(found[2])) if found else (0, 0)

    def accepts(self, position: Position) -> bool:
        """Any linear; an expert by magnitude alone, since nobody sees what passes through it."""
        return position.role == "linear" or (position.role == "expert" and not self.aligns)

    def stage(self, position: Position) -> Stage:
        """On the weight, after what is added to it."""
        return "mask"

    def sizes(self, position: Position) -> tuple[int, ...]:
        """All bands but one; with a pattern, all that it prunes at once.

        Raises:
            ConfigError: If the inputs do not divide into groups of the pattern.
        """
        self._check(position)
        return (self.group - self.kept,) if self.pattern else (1,) * (self.bands - 1)

    def untrained(self) -> WeightMask:
        """By magnitude, without scores."""
        return replace(self, rank=0, structured=False, importance="magnitude")

    def pruned_fraction(self, size: int) -> float:
        """Bands of all bands, or what the pattern prunes of each group."""
        return size / self.parts

    def breaks_groups(self, part: int) -> str:
        """The pattern, where so many inputs that go do not divide into its groups."""
        return self.pattern if self.pattern and part % self.group else ""

    @property
    def parts(self) -> int:
        """Parts of a matrix that sizes count."""
        return self.group or self.bands

    def _check(self, position: Position) -> None:
        """The inputs must divide into groups of the pattern."""
        if self.pattern and position.in_features % self.group:
            raise ConfigError(
                [
                    f"kind weight_mask: pattern {self.pattern} takes groups of {self.group}, but "
                    f"{position.name} has {position.in_features} inputs"
                ],
                "choose a pattern that divides them, or leave this position out with `on`",
            )

    def params(self, position: Position, size: int) -> int:
        """The scores, whatever the size; they are gone after merging."""
        return (self.rank + self.structured) * (position.in_features + position.out_features)

    def frozen_bytes(self, position: Position, size: int) -> int:
        """The mask, one bit a weight."""
        return -(-position.in_features * position.out_features // 8)

    def pruned_weights(self, position: Position, size: int) -> int:
        """Size / parts of the matrix, rounded up.

        Raises:
            StructureError: If nothing would be left.
        """
        parts = self.parts
        if not 0 <= size < parts:
            raise StructureError(
                f"weight_mask at {position.name} prunes 0 to {parts - 1} of {parts} parts, not {size}"
            )
        return -(-size * position.in_features * position.out_features // parts)

    def build(self, position: Position, size: int, host: nn.Module) -> WeightMaskUnit:
        """The smallest weights pruned; a size of 0 is the identity.

        B, R and C are zero. Rows of A have norm 1 on average, so that a step that moves each entry of B
        by as much as R moves A B by as much as R, whatever the rank.

        Raises:
            ConfigError: If the inputs do not divide into groups of the pattern.
        """
        from sparsearch.spaces.kinds.weight_mask.module import WeightMaskUnit

        self._check(position)
        weight = weight_at(position, host).detach()
        pruned = self.pruned_weights(position, size)
        unit = WeightMaskUnit(weight, self, size, pruned)
        if unit.mask.device != weight.device:  # parameters of shapes alone cannot be moved
            unit.to(weight.device)
        unit.renew(weight, pruned)
        return unit
