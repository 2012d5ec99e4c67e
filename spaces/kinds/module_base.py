"""What every attached unit computes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = [
    "Basis",
    "Fold",
    "LowRankUnit",
    "Unit",
    "in_type_of",
]

Basis = tuple[Tensor, ...]
"""Frozen parts of the largest unit at a position; smaller ones take the first of each."""


Fold = tuple[Tensor | None, Tensor | None]
"""What is added to a weight and to a bias; None adds nothing."""


class Unit(nn.Module):
    """An attached module. ``forward(x, gate)`` returns what is added to the stage's tensor.

    ``gate`` is None (the unit is chosen) or a vector with one entry per candidate of the unit.

    Attributes:
        shared: Parameter -> the dimension along which the candidates of the unit share it out;
            a parameter that is not named belongs to all of them alike.
        shares: Entries of each candidate along that dimension; empty where there are equally many.
        constant: Whether the change is one vector (out), whatever x is.
        changes_gain: Whether it changes a norm's own gain, see ``in_norm``.
        reads_host: Whether ``forward`` is told of its linear too: the weight (out, in), and what the linear makes of x,
            without a bias and without the changes of others (..., out).
        of_training: Buffers that a training needs to go on, and that are in no file of trained weights.
    """

    shared: ClassVar[Mapping[str, int]] = {}
    shares: tuple[int, ...] = ()
    constant: ClassVar[bool] = False
    changes_gain: ClassVar[bool] = False
    reads_host: ClassVar[bool] = False
    of_training: ClassVar[frozenset[str]] = frozenset()

    def align(self, *basis: Tensor) -> None:
        """Take frozen parts from what the kind's ``basis`` found."""
        raise TypeError(f"{type(self).__name__} has nothing to align")

    def remade(self) -> tuple[Tensor, ...]:
        """Whole numbers that were made again from the backbone, and have to be those of the training."""
        return ()

    def forward(self, x: Tensor, gate: Tensor | None) -> Tensor:
        """Change caused by the unit: x is (..., features in), the result (..., features out)."""
        raise TypeError(f"{type(self).__name__} defines no forward")

    def dense(self, weight: Tensor, gate: Tensor | None) -> Tensor:
        """The change of a parallel, linear unit as one of its host's weight (out, in), which gives type and device."""
        eye = torch.eye(weight.shape[1], dtype=weight.dtype, device=weight.device)
        columns = self(eye, gate, *((weight, weight.T) if self.reads_host else ()))
        return columns.to(weight.dtype).T  # type: ignore[no-any-return]

    def in_norm(self, x: Tensor, gate: Tensor | None) -> tuple[str, Tensor]:
        """Which parameter of a norm it changes, and by what: (features)."""
        return "bias", self(x, gate)

    def loaded(self) -> None:
        """Told that its tensors have been loaded."""

    def fold(self, weight: Tensor, bias: Tensor | None) -> Fold:
        """The ungated change, as one of the host's weight and bias; units of mergeable kinds define it.

        Args:
            weight: (out, in) of a linear or of the unit's slice of a fused one; (features) of a norm. In
                float32 or wider, with what earlier stages folded.
            bias: (out) likewise; None where there is none.
        """
        raise TypeError(f"{type(self).__name__} does not fold")


class LowRankUnit(Unit):
    """A unit whose change is a product of thin matrices, B inner(A x); such units of one host run as one.

    ``factors`` gives A (k, in) and B (out, k); ``inner`` works on the k numbers between them, and is
    where gates act.
    """

    def factors(self) -> tuple[Tensor, Tensor]:
        """A (k, in) and B (out, k)."""
        raise TypeError(f"{type(self).__name__} defines no factors")

    def inner(self, h: Tensor, gate: Tensor | None) -> Tensor:
        """(..., k) -> (..., k)."""
        raise TypeError(f"{type(self).__name__} defines no inner map")

    def forward(self, x: Tensor, gate: Tensor | None) -> Tensor:
        """X (..., in) -> (..., out)."""
        down, up = (in_type_of(x, factor) for factor in self.factors())
        return F.linear(self.inner(F.linear(x, down), gate), up)

    def dense(self, weight: Tensor, gate: Tensor | None) -> Tensor:
        """The product of the factors: ``inner`` is linear, and runs on each column of A."""
        down, up = (factor.to(weight) for factor in self.factors())
        return F.linear(up, self.inner(down.T, gate))

    def fold(self, weight: Tensor, bias: Tensor | None) -> Fold:
        """To the weight."""
        return self.dense(weight, None), None


def in_type_of(x: Tensor, factor: Tensor) -> Tensor:
    """A factor as a product with x needs it; autocast sees to that itself."""
    return factor if torch.is_autocast_enabled(x.device.type) else factor.to(x.dtype)
