"""What every kind answers, and what every attached unit computes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal, Protocol, runtime_checkable

from torch import Tensor, nn

from sparsearch.spaces.positions import Position

__all__ = ["Kind", "Stage", "Unit"]

Stage = Literal["input", "parallel", "sequential"]
"""Where a unit acts: on the position's input, beside it (fed with its input), or after it (fed with its
output). S3PET section 3: y' = f(x) + sum z_k D_k(x), then y" = y' + sum z_m D_m(y')."""


@runtime_checkable
class Kind(Protocol):
    """What may be attached, and what it costs. Options of a kind are its dataclass fields."""

    name: ClassVar[str]
    mergeable: ClassVar[bool]
    """Whether the unit folds into the backbone's weights and then costs no inference FLOPs."""
    aligns: ClassVar[bool]
    """Whether a unit has frozen parts that are chosen for the task, by ``Unit.align``."""
    default_on: ClassVar[tuple[str, ...]]
    """Patterns of positions used where a space names none."""

    def accepts(self, position: Position) -> bool:
        """Whether the kind can go there."""

    def stage(self, position: Position) -> Stage:
        """Where the unit acts at this position."""

    def sizes(self, position: Position) -> tuple[int, ...]:
        """Sizes of the candidates offered at this position; equal sizes add up (rank units)."""

    def params(self, position: Position, size: int) -> int:
        """Trainable parameters of a unit of this size."""

    def frozen(self, position: Position, size: int) -> int:
        """Numbers that are stored with the unit but not trained."""

    def flops_per_token(self, position: Position, size: int) -> int:
        """FLOPs (2 x MACs) of the matrix products that the attached unit adds per token."""

    def build(self, position: Position, size: int, host: nn.Module) -> Unit:
        """A new unit, the identity at initialisation; ``host`` is the backbone's module."""


class Unit(nn.Module):
    """An attached module. ``forward(x, gate)`` returns what is added to the stage's tensor.

    ``gate`` is None (the unit is chosen) or a vector with one entry per candidate of the unit.

    Attributes:
        shared: Parameter -> the dimension along which the candidates of the unit share it out;
            a parameter that is not named belongs to all of them alike.
    """

    shared: ClassVar[Mapping[str, int]] = {}

    def align(self, matrix: Tensor) -> None:
        """Choose frozen parts by a matrix (out, in), as a rule the gradient of the host's weight."""
        raise TypeError(f"{type(self).__name__} has nothing to align")

    def forward(self, x: Tensor, gate: Tensor | None) -> Tensor:
        """Change caused by the unit: x is (..., features in), the result (..., features out)."""
        raise TypeError(f"{type(self).__name__} defines no forward")
