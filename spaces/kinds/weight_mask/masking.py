"""Arithmetic of weight masks: when how much is pruned, which weights, and gradients through a mask."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

__all__ = ["GatedMask", "StraightThrough", "cubic", "pack", "ranks_in", "smallest", "unpack"]

_DENSE_TENTHS, _FINAL_TENTHS = 1, 7
"""Tenths of training before the first weight is pruned, and before the mask is final."""


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


def ranks_in(scores: Tensor, group: int) -> Tensor:
    """Rank of each of (out, in) scores in its group of neighbouring inputs, 0 the smallest; the first of equals."""
    grouped = scores.reshape(len(scores), -1, group)
    order = grouped.argsort(dim=-1, stable=True)
    return order.argsort(dim=-1).reshape(scores.shape)


def pack(mask: Tensor) -> Tensor:
    """Eight booleans a byte, the first in the lowest bit."""
    flat = mask.flatten()
    bits = nn.functional.pad(flat.to(torch.uint8), (0, -len(flat) % 8)).view(-1, 8)
    shifts = torch.arange(8, dtype=torch.uint8, device=mask.device)
    return (bits << shifts).sum(dim=1, dtype=torch.uint8)


def unpack(packed: Tensor, shape: Sequence[int]) -> Tensor:
    """What ``pack`` packed: (out, in)."""
    shifts = torch.arange(8, dtype=torch.uint8, device=packed.device)
    bits = (packed[:, None] >> shifts) & 1
    return bits.flatten()[: shape[0] * shape[1]].view(*shape).bool()


class StraightThrough(torch.autograd.Function):
    """M * W' whose backward takes dL/dS = G * W' for dL/dM, and from it what S depends on."""

    @staticmethod
    def forward(
        ctx: Any,
        weight: Tensor,
        mask: Tensor,
        factor: Tensor | None,
        alphas: tuple[float, float],
        a: Tensor | None,
        b: Tensor | None,
        r: Tensor | None,
        c: Tensor | None,
    ) -> Tensor:
        """The masked weight, (out, in)."""
        ctx.save_for_backward(weight, mask, factor, a, b)
        ctx.alphas, ctx.structured = alphas, r is not None
        return weight * mask

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients by weight, low-rank scores A and B, and row and column scores."""
        weight, mask, factor, a, b = ctx.saved_tensors
        (low_rank, structured), moved = ctx.alphas, gradient * weight
        to_weight = to_a = to_b = to_r = to_c = None
        if ctx.needs_input_grad[0]:
            size = weight.abs() if factor is None else weight.abs() * factor
            to_weight = gradient * (mask + size)
        if a is not None:
            to_a = low_rank * (moved @ b.T)
            to_b = low_rank * (a.T @ moved)
        if ctx.structured:
            to_r = structured * moved.sum(dim=1)
            to_c = structured * moved.sum(dim=0)
        return to_weight, None, None, None, to_a, to_b, to_r, to_c


class GatedMask(torch.autograd.Function):
    """W' with bands, runs of ``order``, multiplied by one minus their gates; sums in a fixed order."""

    @staticmethod
    def forward(
        ctx: Any, weight: Tensor, gate: Tensor, order: Tensor, lengths: Sequence[int]
    ) -> Tensor:
        """The weight, (out, in), each band times one minus its gate."""
        left = [(1 - g).expand(n) for g, n in zip(gate, lengths[:-1], strict=True)]
        factor = torch.empty_like(weight).flatten()
        factor[order] = torch.cat([*left, weight.new_ones(lengths[-1])])
        factor = factor.view_as(weight)
        ctx.save_for_backward(weight, factor, order)
        ctx.lengths = lengths
        return weight * factor

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients by weight and gates."""
        weight, factor, order = ctx.saved_tensors
        to_weight = to_gate = None
        if ctx.needs_input_grad[0]:
            to_weight = gradient * factor
        if ctx.needs_input_grad[1]:
            bands = (gradient * weight).flatten()[order].split(ctx.lengths)[:-1]
            to_gate = -torch.stack([band.sum() for band in bands])
        return to_weight, to_gate, None, None
