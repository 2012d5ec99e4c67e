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
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from sparsearch.errors import ConfigError, StructureError
from sparsearch.spaces.kinds.base import Fold, Kind, Stage, Unit
from sparsearch.spaces.positions import Position, weight_at

__all__ = ["WeightMask", "WeightMaskUnit", "cubic", "smallest"]

_DENSE_TENTHS, _FINAL_TENTHS = 1, 7
"""Tenths of training before the first weight is pruned, and before the mask is final."""


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
        every: Steps from one mask to the next.
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
        """All bands but one; with a pattern, all that it prunes at once."""
        parts = self.parts(position)
        return (parts - self.kept,) if self.pattern else (1,) * (parts - 1)

    def parts(self, position: Position) -> int:
        """Parts of the matrix that sizes count.

        Raises:
            ConfigError: If the inputs do not divide into groups of the pattern.
        """
        if self.pattern and position.in_features % self.group:
            raise ConfigError(
                [
                    f"kind weight_mask: pattern {self.pattern} takes groups of {self.group}, but "
                    f"{position.name} has {position.in_features} inputs"
                ],
                "choose a pattern that divides them, or leave this position out with `on`",
            )
        return self.group if self.pattern else self.bands

    def params(self, position: Position, size: int) -> int:
        """The scores, whatever the size; they are gone after merging."""
        return (self.rank + self.structured) * (position.in_features + position.out_features)

    def frozen_bytes(self, position: Position, size: int) -> int:
        """The mask, one bit a weight."""
        return -(-position.in_features * position.out_features // 8)

    def pruned_weights(self, position: Position, size: int) -> int:
        """Size / parts of the matrix.

        Raises:
            StructureError: If nothing would be left.
        """
        parts = self.parts(position)
        if not 0 <= size < parts:
            raise StructureError(
                f"weight_mask at {position.name} prunes 0 to {parts - 1} of {parts} parts, not {size}"
            )
        return size * position.in_features * position.out_features // parts

    def build(self, position: Position, size: int, host: nn.Module) -> WeightMaskUnit:
        """The smallest weights pruned; a size of 0 is the identity.

        B, R and C are zero. Rows of A have norm 1 on average, so that a step that moves each entry of B
        by as much as R moves A B by as much as R, whatever the rank.
        """
        weight = weight_at(position, host).detach()
        pruned = self.pruned_weights(position, size)
        unit = WeightMaskUnit(weight, self, size, self.parts(position), pruned).to(weight.device)
        unit.renew(weight, pruned)
        return unit


class WeightMaskUnit(Unit):
    """A (out, rank), B (rank, in), R (out), C (in); ``packed``, the mask in bits, is what is stored.

    Args:
        weight: (out, in), as pretrained.
        kind: Its options.
        size: Parts of the matrix that are pruned.
        parts: Parts of the matrix.
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

    def __init__(
        self, weight: Tensor, kind: WeightMask, size: int, parts: int, pruned: int
    ) -> None:
        super().__init__()
        out_features, in_features = weight.shape
        self.kind, self.size, self.parts, self.pruned = kind, size, parts, pruned
        self.scale = max(float(weight.float().abs().mean()), torch.finfo(torch.float32).tiny)
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
        self.register_buffer("packed", _pack(everything))
        self.register_buffer("order", None, persistent=False)
        self.register_load_state_dict_post_hook(_unpack_loaded)

    def loaded(self) -> None:
        """The stored mask is the final one."""
        self.mask = _unpack(self.packed, self.mask.shape)
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
            ranks = _ranks(scores, self.parts)
            scores = scores.masked_fill(ranks >= self.size, torch.inf)
        self.mask = ~smallest(scores.flatten(), count).view_as(scores)
        self.packed.copy_(_pack(self.mask))

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
            return weight.where(self.mask, 0)
        factors = [None if f is None else f.to(weight) for f in (self.A, self.B, self.R, self.C)]
        masked: Tensor = _StraightThrough.apply(  # type: ignore[no-untyped-call]
            weight, self.mask, self.scale, self.kind, *factors
        )
        return masked

    def faded(self, weight: Tensor, gate: Tensor, pretrained: Tensor) -> Tensor:
        """W' (out, in) with each band of the smallest pretrained weights multiplied by one minus its gate."""
        if self.order is None:
            self.order = self._order(pretrained.detach())
        total, n = weight.numel(), len(gate)
        edges = [(self.size * band // n) * total // self.parts for band in range(n + 1)]
        lengths = [b - a for a, b in zip(edges, [*edges[1:], total], strict=True)]
        faded: Tensor = _Faded.apply(weight, gate.to(weight), self.order, lengths)  # type: ignore[no-untyped-call]
        return faded

    def _order(self, weight: Tensor) -> Tensor:
        """Indices of the weights from the first that is pruned to the last."""
        size = weight.float().abs()
        ranks = _ranks(size, self.parts) if self.kind.pattern else size
        return torch.argsort(ranks.flatten(), stable=True)

    def fold(self, weight: Tensor, bias: Tensor | None) -> Fold:
        """Minus what is pruned: a weight minus itself is exactly zero."""
        return -weight.masked_fill(self.mask, 0), None


def cubic(step: int, steps: int) -> float:
    """Share of the final sparsity after so many steps of all (Zhu and Gupta 2017; PST, section 3.3).

    Dense for the first tenth, final for the last three.

    >>> [cubic(step, 100) for step in (0, 10, 40, 70, 100)]
    [0.0, 0.0, 0.875, 1.0, 1.0]
    """
    start, end = _DENSE_TENTHS * steps // 10, _FINAL_TENTHS * steps // 10
    if step >= end:
        return 1.0
    return 1.0 - (1.0 - max(0, step - start) / (end - start)) ** 3


def smallest(scores: Tensor, count: int) -> Tensor:
    """Which (n,) scores are the so many smallest, exactly; among equal ones the first are.

    >>> smallest(torch.tensor([3.0, 1.0, 1.0, 1.0]), 2).tolist()
    [False, True, True, False]
    """
    if count == 0:
        return torch.zeros_like(scores, dtype=torch.bool)
    edge = scores.kthvalue(count).values
    below, equal = scores < edge, scores == edge
    return below | (equal & (equal.cumsum(0) <= count - below.sum()))


def _ranks(scores: Tensor, group: int) -> Tensor:
    """Rank of each of (out, in) scores in its group of neighbouring inputs, 0 the smallest; the first of equals."""
    grouped = scores.view(len(scores), -1, group)
    order = grouped.argsort(dim=-1, stable=True)
    return order.argsort(dim=-1).view_as(scores)


def _pack(mask: Tensor) -> Tensor:
    """Eight booleans a byte, the first in the lowest bit."""
    flat = mask.flatten()
    bits = nn.functional.pad(flat.to(torch.uint8), (0, -len(flat) % 8)).view(-1, 8)
    shifts = torch.arange(8, dtype=torch.uint8, device=mask.device)
    return (bits << shifts).sum(dim=1, dtype=torch.uint8)


def _unpack(packed: Tensor, shape: Sequence[int]) -> Tensor:
    shifts = torch.arange(8, dtype=torch.uint8, device=packed.device)
    bits = (packed[:, None] >> shifts) & 1
    return bits.flatten()[: shape[0] * shape[1]].view(*shape).bool()


def _unpack_loaded(unit: nn.Module, _: object) -> None:
    """After ``load_state_dict``."""
    assert isinstance(unit, WeightMaskUnit), "the hook of a mask"
    unit.loaded()


class _StraightThrough(torch.autograd.Function):
    """M * W' whose backward takes dL/dS = G * W' for dL/dM, and from it what S depends on."""

    @staticmethod
    def forward(
        ctx: Any,
        weight: Tensor,
        mask: Tensor,
        scale: float,
        kind: WeightMask,
        a: Tensor | None,
        b: Tensor | None,
        r: Tensor | None,
        c: Tensor | None,
    ) -> Tensor:
        ctx.save_for_backward(weight, mask, a, b)
        ctx.scale, ctx.kind, ctx.structured = scale, kind, r is not None
        return weight.where(mask, 0)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        weight, mask, a, b = ctx.saved_tensors
        kind, moved = ctx.kind, gradient * weight
        to_weight = to_a = to_b = to_r = to_c = None
        if ctx.needs_input_grad[0]:
            to_weight = gradient * (mask + weight.abs() / ctx.scale)
        if a is not None:
            to_a = kind.alpha_low_rank * moved @ b.T
            to_b = kind.alpha_low_rank * a.T @ moved
        if ctx.structured:
            to_r = kind.alpha_structured * moved.sum(dim=1)
            to_c = kind.alpha_structured * moved.sum(dim=0)
        return to_weight, None, None, None, to_a, to_b, to_r, to_c


class _Faded(torch.autograd.Function):
    """W' with bands, runs of ``order``, multiplied by one minus their gates; sums in a fixed order."""

    @staticmethod
    def forward(
        ctx: Any, weight: Tensor, gate: Tensor, order: Tensor, lengths: Sequence[int]
    ) -> Tensor:
        left = [(1 - g).expand(n) for g, n in zip(gate, lengths[:-1], strict=True)]
        factor = torch.empty_like(weight).flatten()
        factor[order] = torch.cat([*left, weight.new_ones(lengths[-1])])
        factor = factor.view_as(weight)
        ctx.save_for_backward(weight, factor, order)
        ctx.lengths = lengths
        return weight * factor

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        weight, factor, order = ctx.saved_tensors
        to_weight = to_gate = None
        if ctx.needs_input_grad[0]:
            to_weight = gradient * factor
        if ctx.needs_input_grad[1]:
            bands = (gradient * weight).flatten()[order].split(ctx.lengths)[:-1]
            to_gate = -torch.stack([band.sum() for band in bands])
        return to_weight, to_gate, None, None
