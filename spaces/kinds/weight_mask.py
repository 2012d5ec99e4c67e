"""Weight masks: unstructured pruning of a linear, y = x (M * (W + dW))^T + b (PST, Li et al. 2022; DSEE's S1).

dW is what low-rank and sparse units at the same position add: the mask comes after it, so that merging keeps
every zero. The mask removes the weights with the smallest score

    S = |W'| / mean|W| + alpha_low_rank A B + alpha_structured (R 1^T + 1 C^T),    W' = W + dW

which is the magnitude until A, B, R and C have learnt how the loss moves each weight, by the straight-through
estimate dL/dS := dL/dM = G * W' with G = dL/d(M * W'). Division by mean|W| puts the terms on one scale, whatever
the backbone.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn

from sparsearch.errors import ConfigError, StructureError
from sparsearch.spaces.kinds._pruning import (
    Faded,
    StraightThrough,
    cubic,
    pack,
    ranks_in,
    smallest,
    unpack,
)
from sparsearch.spaces.kinds.base import Fold, Kind, Stage, Unit
from sparsearch.spaces.positions import Position, weight_at

__all__ = ["WeightMask", "WeightMaskUnit"]


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
    """

    name: ClassVar[str] = "weight_mask"
    rank: int = field(default=8, metadata={"least": 0})
    structured: bool = True
    alpha_low_rank: float = 1.0
    alpha_structured: float = 1.0
    every: int = 50
    pattern: str = ""
    bands: int = field(default=20, metadata={"least": 2})

    def __post_init__(self) -> None:
        if self.pattern and not 0 < self.kept < self.group:
            raise ConfigError(
                [f"kind weight_mask: pattern must be N:M with 0 < N < M, not {self.pattern!r}"],
                'for example pattern: "2:4"',
            )

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
        """Any linear."""
        return position.role == "linear"

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
        self._check(position)
        weight = weight_at(position, host).detach()
        pruned = self.pruned_weights(position, size)
        unit = WeightMaskUnit(weight, self, size, pruned).to(weight.device)
        unit.renew(weight, pruned)
        return unit


class WeightMaskUnit(Unit):
    """A (out, rank), B (rank, in), R (out), C (in); ``packed``, the mask in bits, is what is stored.

    Args:
        weight: (out, in), as pretrained.
        kind: Its options.
        size: Parts of the matrix that are pruned.
        pruned: Weights that are pruned in the end.

    Attributes:
        mask: (out, in) True for what stays.
        settled: Whether the mask is final. It then is a constant: gradients are plain, scores get none.
    """

    A: nn.Parameter | None
    B: nn.Parameter | None
    R: nn.Parameter | None
    C: nn.Parameter | None
    mask: Tensor
    packed: Tensor
    order: Tensor | None
    gone: Tensor | None

    def __init__(self, weight: Tensor, kind: WeightMask, size: int, pruned: int) -> None:
        super().__init__()
        out_features, in_features = weight.shape
        self.kind, self.size, self.pruned = kind, size, pruned
        self.scale = float(weight.abs().mean(dtype=torch.float64)) or 1.0
        self.settled = True
        for name in "ABRC":
            self.register_parameter(name, None)
        if kind.rank:
            self.A = nn.Parameter(torch.randn(out_features, kind.rank) / kind.rank**0.5)
            self.B = nn.Parameter(torch.zeros(kind.rank, in_features))
        if kind.structured:
            self.R = nn.Parameter(torch.zeros(out_features))
            self.C = nn.Parameter(torch.zeros(in_features))
        everything = torch.ones(out_features, in_features, dtype=torch.bool)
        self.register_buffer("mask", everything, persistent=False)
        self.register_buffer("packed", pack(everything))
        self.register_buffer("order", None, persistent=False)
        self.register_buffer("gone", None, persistent=False)
        self.register_load_state_dict_post_hook(_unpack_loaded)  # type: ignore[no-untyped-call]

    def loaded(self) -> None:
        """The stored mask is the final one."""
        self.mask = unpack(self.packed, self.mask.shape)
        self.settled = True

    @torch.no_grad()
    def scores(self, weight: Tensor) -> Tensor:
        """S for W' (out, in), in float32 or wider."""
        wide = weight.to(torch.promote_types(weight.dtype, torch.float32))
        found = wide.abs() / self.scale
        if self.A is not None and self.B is not None:
            found = found.addmm(self.A.to(wide), self.B.to(wide), alpha=self.kind.alpha_low_rank)
        if self.R is not None and self.C is not None:
            rows_and_columns = self.R.to(wide)[:, None] + self.C.to(wide)
            found = found + self.kind.alpha_structured * rows_and_columns
        return found

    @torch.no_grad()
    def renew(self, weight: Tensor, count: int) -> None:
        """A new mask for W' (out, in): exactly so many weights are pruned, among those that the pattern prunes."""
        scores = self.scores(weight)
        if self.kind.pattern:
            ranks = ranks_in(scores, self.kind.parts)
            scores = scores.masked_fill(ranks >= self.size, torch.inf)
        if self.gone is not None:
            scores = scores.masked_fill(self.gone, torch.inf)
            count = min(count, int(scores.isfinite().sum()))
        self.mask = ~smallest(scores.flatten(), count).view_as(scores)
        self.packed.copy_(pack(self.mask))

    def leave_out(self, gone: Tensor, weight: Tensor) -> None:
        """Prune the same share of what is left where some weights, (out, in), are gone with a head or a neuron."""
        self.gone = gone
        self.pruned = -(-self.size * int((~gone).sum()) // self.kind.parts)
        self.renew(weight, self.pruned)

    def advance(self, step: int, steps: int, weight: Callable[[], Tensor]) -> None:
        """Renew the mask if it is due after so many steps of all; ``weight`` gives W'."""
        share = cubic(step, steps)
        if step == 0:
            self.settled = False
        if self.settled or (step > 0 and share < 1 and step % self.kind.every):
            return
        self.renew(weight(), int(share * self.pruned))
        self.settled = share == 1

    def masked(self, weight: Tensor) -> Tensor:
        """M * W' for W' (out, in); while the mask still changes, scores learn by the straight-through estimate."""
        if self.settled:
            return weight * self.mask
        alphas = (self.kind.alpha_low_rank, self.kind.alpha_structured)
        factors = [None if f is None else f.to(weight) for f in (self.A, self.B, self.R, self.C)]
        masked: Tensor = StraightThrough.apply(  # type: ignore[no-untyped-call]
            weight, self.mask, self.scale, alphas, *factors
        )
        return masked

    def faded(self, weight: Tensor, gate: Tensor, pretrained: Tensor) -> Tensor:
        """W' (out, in) with each band of the smallest pretrained weights multiplied by one minus its gate."""
        if self.order is None:
            self.order = self._order(pretrained.detach())
        total, n = weight.numel(), len(gate)
        edges = [-(-(self.size * band // n) * total // self.kind.parts) for band in range(n + 1)]
        lengths = [b - a for a, b in zip(edges, [*edges[1:], total], strict=True)]
        faded: Tensor = Faded.apply(weight, gate.to(weight), self.order, lengths)  # type: ignore[no-untyped-call]
        return faded

    def _order(self, weight: Tensor) -> Tensor:
        """Indices of the weights from the first that is pruned to the last."""
        size = weight.float().abs()
        ranks = ranks_in(size, self.kind.parts) if self.kind.pattern else size
        return torch.argsort(ranks.flatten(), stable=True)

    def fold(self, weight: Tensor, bias: Tensor | None) -> Fold:
        """Minus what is pruned: a weight minus itself is exactly zero."""
        return -weight.masked_fill(self.mask, 0), None


def _unpack_loaded(unit: nn.Module, _: object) -> None:
    """After ``load_state_dict``."""
    assert isinstance(unit, WeightMaskUnit), "the hook of a mask"
    unit.loaded()
