"""Positions: where something can be attached to a model or removed from it."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Literal

from sparsearch.errors import StructureError

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = [
    "Feed",
    "Position",
    "find",
    "matching",
    "weight_at",
]

Role = Literal["linear", "norm", "block", "heads", "neurons"]


@dataclass(frozen=True)
class Feed:
    """A linear, or a slice of a fused one, whose outputs are the units of a place that can be cut.

    Attributes:
        module: Path under the base model.
        start: First output feature inside a fused projection.
        rows: Output features.
        in_features: Width of its input.
        has_bias: Whether its outputs have a bias.
        per_token: Whether it runs on every token, not on relative positions alone (DeBERTa-v2).
    """

    module: str
    start: int
    rows: int
    in_features: int
    has_bias: bool
    per_token: bool = True


@dataclass(frozen=True)
class Position:
    """One place in a backbone where something can be attached or cut.

    A place that can be cut (heads, neurons) lies between linears that feed it and one that reads it.

    Attributes:
        name: Canonical name, unique in a backbone.
        role: ``linear``, ``norm``, ``block`` (a whole attention or feed-forward sub-layer), or what can
            be cut: ``heads``, ``neurons``.
        module: Path, under the base model, of the module whose output is changed.
        entry: Path of the module whose input is the position's input (differs for blocks only).
        layer: Index of the layer, None outside the layers.
        in_features: Width of the input.
        out_features: Width of the output (of the slice, in a fused projection).
        start: First output feature inside a fused projection.
        has_bias: Whether the module has a bias of its own.
        units: What can be cut one by one: heads (with grouped queries, groups that share keys), or neurons.
        feeds: The linears whose outputs they are; ``module`` is the one that reads them.
    """

    name: str
    role: Role
    module: str
    entry: str
    layer: int | None
    in_features: int
    out_features: int
    start: int = 0
    has_bias: bool = False
    units: int = 0
    feeds: tuple[Feed, ...] = ()


def weight_at(position: Position, host: nn.Module, weight: Tensor | None = None) -> Tensor:
    """The position's part of its module's weight, or of a tensor of that shape, as (out, in)."""
    from transformers.pytorch_utils import Conv1D

    whole = host.get_parameter("weight") if weight is None else weight
    rows = whole.T if isinstance(host, Conv1D) else whole
    return rows[position.start : position.start + position.out_features]


def matching(positions: Sequence[Position], patterns: Sequence[str]) -> tuple[Position, ...]:
    """Positions whose name matches one of the glob patterns, in the order of the backbone."""
    return tuple(p for p in positions if any(fnmatchcase(p.name, pattern) for pattern in patterns))


def find(positions: Sequence[Position], name: str) -> Position:
    """The position of that name.

    Raises:
        StructureError: If there is none; the message lists the nearest names.
    """
    for position in positions:
        if position.name == name:
            return position
    near = difflib.get_close_matches(name, [p.name for p in positions], n=3)
    raise StructureError(
        f"the backbone has no position {name!r}",
        f"did you mean {' or '.join(near)}?" if near else "`sparsearch space MODEL` lists them",
    )
