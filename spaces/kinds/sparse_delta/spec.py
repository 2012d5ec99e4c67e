"""Sparse deltas (DSEE's S2, Chen et al. 2023): trained changes of single entries of a linear's weight."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeAlias, get_args

from sparsearch.spaces.families.position import MATRICES, Position, weight_at
from sparsearch.spaces.kinds.base import Kind, Stage
from sparsearch.spaces.kinds.options import Count, Scale

if TYPE_CHECKING:
    from torch import Tensor, nn

    from sparsearch.spaces.kinds.module_base import Basis
    from sparsearch.spaces.kinds.sparse_delta.module import SparseDeltaUnit
    from sparsearch.spaces.kinds.sparse_delta.supports import Places

__all__ = ["SUPPORTS", "SparseDelta"]

Support: TypeAlias = Literal["residual", "magnitude", "gradient", "random"]
"""Ways to rank the places of a matrix, see ``supports.find_support``."""

SUPPORTS: tuple[Support, ...] = get_args(Support)


@dataclass(frozen=True)
class SparseDelta(Kind):
    """delta = scale * S x, with S (out, in) zero but for a few places that are fixed beforehand.

    Supports are nested: the first places of one ranked list. A candidate is what one support has
    more than the one before it: 16, 48, 192 and 768 entries for supports of 16, 64, 256 and 1,024.
    Whichever of them are chosen, a structure takes as many places as they count, from the first.

    Attributes:
        smallest: Entries of the smallest support.
        factor: From one support to the next.
        steps: Supports per position; none is larger than the matrix.
        support: How places are ranked: ``residual``, ``magnitude``, ``gradient`` (of the task's loss)
            or ``random``.
        scale: Of all values (DSEE: lora_alpha / r).
        indices: ``remade``: places that the backbone's weights (or a name) give are found again wherever the unit is
            attached, and values alone are stored. ``stored``: they are stored too. Those of a gradient always are.
    """

    name: ClassVar[str] = "sparse_delta"
    not_on_quantised: ClassVar[str] = ""
    not_in_peft: ClassVar[str] = (
        "PEFT's SHiRA stores values alone: it draws their places anew from a seed, and their number is a rank's"
    )
    smallest: Count = 16
    factor: Count = 4
    steps: Count = 4
    support: Support = "residual"
    earlier: ClassVar[Mapping[str, Any]] = {"indices": "stored"}
    scale: Scale = 1.0
    indices: Literal["remade", "stored"] = "remade"

    @property
    def set_options(self) -> dict[str, Any]:
        """What it computes; how its places come into a file is no part of that."""
        return {name: v for name, v in super().set_options.items() if name != "indices"}

    @property
    def stores_indices(self) -> bool:
        """Whether its places are in the file."""
        return self.indices == "stored" or self.aligns

    @property
    def aligns(self) -> bool:
        """Only the gradient's support waits for a task."""
        return self.support == "gradient"

    def accepts(self, position: Position) -> bool:
        """Any linear, expert or router."""
        return position.role in MATRICES

    def stage(self, position: Position) -> Stage:
        """Fed with the linear's input."""
        return "parallel"

    def sizes(self, position: Position) -> tuple[int, ...]:
        """What each support adds to the one before it."""
        supports = [0]
        for step in range(self.steps):
            support = self.params(position, self.smallest * self.factor**step)
            if support == supports[-1]:  # the whole matrix, or a factor of one
                break
            supports.append(support)
        return _differences(supports[1:])

    def params(self, position: Position, size: int) -> int:
        """One per entry, of which a matrix has only so many."""
        return min(size, position.in_features * position.out_features)

    def frozen_bytes(self, position: Position, size: int) -> int:
        """Row and column of each entry, four bytes each, where they are stored."""
        return 8 * self.params(position, size) if self.stores_indices else 0

    def flops_per_token(self, position: Position, size: int) -> int:
        """One multiplication and one addition per entry."""
        return 2 * self.params(position, size)

    def basis(self, position: Position, matrix: Tensor) -> Basis:
        """Rows and columns of the largest support."""
        return self._places(position, matrix, sum(self.sizes(position)))

    def _places(self, position: Position, matrix: Tensor, count: int) -> Places:
        from sparsearch.spaces.kinds.sparse_delta.supports import find_support

        return find_support(matrix, count, self.support, position.name)

    def build(self, position: Position, size: int, host: nn.Module) -> SparseDeltaUnit:
        """Values zero; until it is aligned with a task, ``gradient`` takes the weight's largest entries."""
        from sparsearch.spaces.kinds.remembered import remembered
        from sparsearch.spaces.kinds.sparse_delta.module import SparseDeltaUnit

        count = self.params(position, size)
        ends = [*(end for end in accumulate(self.sizes(position)) if end < count), count]
        unit = SparseDeltaUnit(
            position.out_features, _differences(ends), self.scale, self.stores_indices
        )
        longest = max(count, sum(self.sizes(position)))
        weight = weight_at(position, host).detach()
        unit.align(
            *remembered(
                host.get_parameter(position.parameter),
                (self, position, longest),
                lambda: self._places(position, weight, longest),
            )
        )
        return unit


def _differences(ends: Sequence[int]) -> tuple[int, ...]:
    return tuple(end - start for start, end in pairwise((0, *ends)))
