"""DSEE's choice of what to cut (Chen et al. 2023, section 3): units whose weights fine-tuning moved least."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sparsearch.spaces.attachment import attachment_of
from sparsearch.spaces.backbone import base_of
from sparsearch.spaces.positions import Feed, Position, weight_at
from sparsearch.spaces.space import Space

__all__ = ["update_magnitudes"]


@torch.no_grad()
def update_magnitudes(model: nn.Module, space: Space) -> Tensor:
    """How far each head and block of neurons has moved, by the rows of the linears that feed it.

    For a head that is the sum of |s (UV + S2)| over its rows of q, k and v, as far as something is attached there
    that changes weights; where nothing is at any of them, the sum of |W|, as for DSEE's other matrices.

    Args:
        model: With the whole space attached and trained.
        space: What is attached.

    Returns:
        (candidates,) means per unit; zero for what is attached.
    """
    found = torch.zeros(len(space.candidates))
    moved: dict[str, Tensor] = {}
    ends: dict[str, int] = {}
    for i in space.removals:
        c = space.candidates[i]
        position = space.position(c.position)
        if c.position not in moved:
            moved[c.position] = _per_unit(model, space, position)
        start = ends.get(c.position, 0)
        ends[c.position] = start + c.size
        found[i] = moved[c.position][start : start + c.size].mean()
    return found


def _per_unit(model: nn.Module, space: Space, position: Position) -> Tensor:
    """(units,) sums over the rows that feed each."""
    rows = [_rows(model, space, feed, position.units) for feed in position.feeds]
    changes = [change for change, _ in rows if change is not None]
    return torch.stack(changes or [own for _, own in rows]).sum(0).cpu()


def _rows(model: nn.Module, space: Space, feed: Feed, units: int) -> tuple[Tensor | None, Tensor]:
    """Sums of |change| (None where nothing changes it) and of |W| over a linear's rows, by unit."""
    attachment = attachment_of(model)
    assert attachment is not None, "the space is attached"
    linear = next(
        p
        for p in space.positions
        if p.role == "linear" and (p.module, p.start) == (feed.module, feed.start)
    )
    weight = weight_at(linear, base_of(model).get_submodule(linear.module)).detach().float()
    changing = [
        s
        for s in attachment.slots
        if s.position.name == linear.name
        and s.kind.stage(linear) == "parallel"
        and s.changes_weight
    ]
    change = None
    if changing:
        dense = [slot.unit.dense(weight, None) for slot in changing]
        change = _by_unit(torch.stack(dense).sum(0), units)
    return change, _by_unit(weight, units)


def _by_unit(matrix: Tensor, units: int) -> Tensor:
    return matrix.abs().sum(1).view(units, -1).sum(1)
