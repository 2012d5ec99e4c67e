"""Spectral units: trained values on frozen pairs of singular directions, delta = sum_k s_k u_k v_k^T x.

The form of SVF and SVDiff (Sun et al. 2022; Han et al. 2023), on directions that the task chooses: the singular
vectors of the loss's gradient, as LoRA-GA takes them, or of the change of a brief fine-tuning, instead of the
weight's own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from sparsearch.spaces.families.position import MATRICES, Position, weight_at
from sparsearch.spaces.kinds.base import Kind, Stage
from sparsearch.spaces.kinds.options import Count

if TYPE_CHECKING:
    from torch import Tensor, nn

    from sparsearch.spaces.kinds.module_base import Basis
    from sparsearch.spaces.kinds.spectral.module import SpectralUnit

__all__ = ["Spectral"]


@dataclass(frozen=True)
class Spectral(Kind):
    """One trained number per direction, one candidate per block of directions.

    A block costs the same few parameters whatever the width of the layer, so that even budgets of a
    few hundred parameters reach many positions. The directions are stored, not trained.

    Attributes:
        block: Directions of one candidate.
        max_blocks: Candidates per position; the first holds the leading directions.
        directions: Where they come from. ``task``: the task chooses them, and they are stored with it. ``weight``: the
            weight's own leading ones. ``seed``: drawn at random, the same at each position of that name, as VeRA's
            matrices are (Kopiczko et al. 2024). The latter two are made again wherever the unit is attached.
    """

    name: ClassVar[str] = "spectral"
    not_on_quantised: ClassVar[str] = ""
    not_in_peft: ClassVar[str] = ""
    block: Count = 16
    max_blocks: Count = 8
    directions: Literal["task", "weight", "seed"] = "task"

    @property
    def aligns(self) -> bool:
        """Whether the task chooses the directions."""
        return self.directions == "task"

    def accepts(self, position: Position) -> bool:
        """Any linear, expert or router that is wide enough for one block."""
        width = min(position.in_features, position.out_features)
        return position.role in MATRICES and width >= self.block

    def stage(self, position: Position) -> Stage:
        """Fed with the linear's input."""
        return "parallel"

    def sizes(self, position: Position) -> tuple[int, ...]:
        """One candidate per block."""
        fit = min(position.in_features, position.out_features) // self.block
        return (1,) * min(self.max_blocks, fit)

    def params(self, position: Position, size: int) -> int:
        """One per direction."""
        return size * self.block

    def frozen_bytes(self, position: Position, size: int) -> int:
        """The directions of a task, two bytes a number."""
        numbers = size * self.block * (position.in_features + position.out_features)
        return 2 * numbers if self.aligns else 0

    def basis(self, position: Position, matrix: Tensor) -> Basis:
        """Leading singular vectors in bfloat16: left (out, k), right (k, in)."""
        from sparsearch.spaces.kinds.decomposition import truncated_svd

        left, _, right = truncated_svd(matrix, sum(self.sizes(position)) * self.block)
        return left.bfloat16().contiguous(), right.bfloat16().contiguous()

    def flops_per_token(self, position: Position, size: int) -> int:
        """Onto the directions and out again."""
        return 2 * size * self.block * (position.in_features + position.out_features)

    def low_rank(self, unit: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """The right directions, and the left ones times the values."""
        return unit["right"], unit["left"] * unit["values"].flatten()

    def build(self, position: Position, size: int, host: nn.Module) -> SpectralUnit:
        """Values zero; until it is aligned with a task, the directions are the weight's own."""
        from sparsearch.spaces.kinds.remembered import remembered
        from sparsearch.spaces.kinds.spectral import directions
        from sparsearch.spaces.kinds.spectral.module import SpectralUnit

        width, height = position.in_features, position.out_features
        unit = SpectralUnit(width, height, size, self.block, stored=self.aligns)
        weight, count = weight_at(position, host).detach(), sum(self.sizes(position)) * self.block
        if self.directions == "seed":
            unit.align(*directions.drawn(position.name, (height, width), size * self.block))
        elif self.directions == "weight":
            key = (position, "directions", count)
            own = host.get_parameter(position.parameter)
            unit.align(*remembered(own, key, lambda: directions.of_weight(weight, count)))
        else:
            unit.align(*self.basis(position, weight))
        return unit
