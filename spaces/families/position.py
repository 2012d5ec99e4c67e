"""Positions: where something can be attached to a model or removed from it."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from fractions import Fraction
from typing import TYPE_CHECKING, Literal

from sparsearch.errors import StructureError
from sparsearch.spaces.backbone.quantised.weights import weight_values

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = [
    "MATRICES",
    "PRUNABLE",
    "Feed",
    "Position",
    "Queries",
    "add_to_weight",
    "by_output",
    "find",
    "matching",
    "weight_at",
    "widths",
]

Role = Literal["linear", "expert", "router", "norm", "block", "heads", "neurons"]

MATRICES: tuple[Role, ...] = ("linear", "expert", "router")
"""Roles of positions that are a matrix (out, in) of the backbone."""

PRUNABLE: tuple[Role, ...] = ("linear", "expert")
"""Those whose weights count as what can be pruned."""


@dataclass(frozen=True)
class Feed:
    """A linear, or a slice of a fused one, whose outputs are the units of a place that can be cut.

    Attributes:
        module: Path under the base model.
        start: First output feature inside a fused projection.
        rows: How many output features.
        in_features: Width of its input.
        has_bias: Whether its outputs have a bias.
        per_token: Whether it runs on every token, not on relative positions alone (DeBERTa-v2).
        runs: As in ``Position``.
        period: As in ``Position``.
    """

    module: str
    start: int
    rows: int
    in_features: int
    has_bias: bool
    per_token: bool = True
    runs: int = 1
    period: int = 0

    @property
    def features(self) -> list[int]:
        """Its output features in the module, in the order of the units."""
        return _features(self.start, self.rows, self.runs, self.period)


@dataclass(frozen=True)
class Queries:
    """The queries of an attention, as its scores take them but for rotary positions.

    Attributes:
        module: Path, under the base model, of what puts them out: a linear, or the norm of queries behind it.
        attention: Path of the attention itself.
        start: First output feature inside a fused projection.
        runs: As in ``Position``.
        heads: How many heads.
        key_heads: How many of them have keys of their own; with grouped queries fewer.
        width: Features of one head.
        heads_first: Whether the norm's output is (batch, heads, tokens, width), tokens behind heads.
    """

    module: str
    attention: str
    start: int
    runs: int
    heads: int
    key_heads: int
    width: int
    heads_first: bool = False

    @property
    def features(self) -> int:
        """Those of all heads together."""
        return self.heads * self.width


@dataclass(frozen=True)
class Position:
    """One place in a backbone where something can be attached or cut.

    A place that can be cut (heads, neurons) lies between linears that feed it and one that reads it.

    Attributes:
        name: Canonical name, unique in a backbone.
        role: ``linear``; ``expert`` or ``router``, a matrix that its module multiplies by in its own way, so that it
            can be changed, but nothing can run beside it; ``norm``; ``block`` (a whole attention or feed-forward
            sub-layer); or what can be cut: ``heads``, ``neurons``.
        module: Path, under the base model, of the module whose output is changed.
        entry: Path of the module whose input is the position's input (differs for blocks only).
        layer: Index of the layer, None outside the layers.
        in_features: Width of the input.
        out_features: Width of the output (of the slice, in a fused projection).
        start: First output feature inside a fused projection.
        has_bias: Whether the module has a bias of its own.
        runs: In how many equal runs its output features lie: more than one in a projection that is fused head by
            head.
        period: Features from one run's start to that of the next; 0 where there is one run.
        repeats: How often the matrix runs on a token: more than once where layers share their weights (ALBERT), less
            for an expert, which a part of all tokens takes.
        units: What can be cut one by one: heads (with grouped queries, groups that share keys), or neurons.
        feeds: The linears whose outputs they are; ``module`` is the one that reads them.
        parameter: Name of the weight in the module.
        expert: Number of the matrix in a weight of several; None where the weight is one.
        transposed: Whether the weight is (in, out).
        scored: Whether its outputs, where they are queries, are scored with the key of every token.
        queries: Of a block that is an attention with a softmax; None elsewhere.
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
    runs: int = 1
    period: int = 0
    repeats: int | Fraction = 1
    parameter: str = "weight"
    expert: int | None = None
    transposed: bool = False
    scored: bool = True
    queries: Queries | None = None

    @property
    def host(self) -> str:
        """Path of its weight: of the module, or of the parameter where that is called otherwise."""
        return self.module if self.parameter == "weight" else f"{self.module}.{self.parameter}"

    @property
    def in_weight(self) -> bool:
        """Whether only its weight can be changed: its module's output is not the product with it."""
        return self.role in ("expert", "router")

    @property
    def rows(self) -> slice | list[int]:
        """Index of its output features in the module's; a slice where they lie side by side."""
        if self.runs == 1:
            return slice(self.start, self.start + self.out_features)
        return _features(self.start, self.out_features, self.runs, self.period)


def _features(start: int, width: int, runs: int, period: int) -> list[int]:
    each = width // runs
    return [start + run * period + i for run in range(runs) for i in range(each)]


def weight_at(position: Position, host: nn.Module, weight: Tensor | None = None) -> Tensor:
    """The position's part of its module's weight, or of a tensor of that shape, as (out, in).

    A view where its output features lie side by side, a copy elsewhere: to change a weight, ``add_to_weight``. Of a
    weight in 8 or 4 bits the values that it stands for.
    """
    own = weight_values(host, position.parameter) if weight is None else weight
    own = own if position.expert is None else own[position.expert]
    return by_output(position, host, own)[position.rows]


def add_to_weight(position: Position, host: nn.Module, weight: Tensor, change: Tensor) -> None:
    """Add (out, in) to the position's part of a tensor of its module's weight's shape, in place."""
    own = weight if position.expert is None else weight[position.expert]
    by_output(position, host, own)[position.rows] += change


def widths(module: nn.Module) -> tuple[int, int]:
    """Input and output features of a linear (either orientation) or of a norm."""
    from transformers.pytorch_utils import Conv1D

    if isinstance(module, Conv1D):
        return int(module.nx), int(module.nf)
    if hasattr(module, "in_features"):
        return int(module.in_features), int(module.out_features)  # type: ignore[arg-type]
    width = int(module.get_parameter("weight").shape[0])
    return width, width


def by_output(position: Position, host: nn.Module, weight: Tensor) -> Tensor:
    """A view (out, in) of one matrix as its module keeps it, or that form of a matrix (out, in)."""
    from transformers.pytorch_utils import Conv1D

    return weight.T if position.transposed or isinstance(host, Conv1D) else weight


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
