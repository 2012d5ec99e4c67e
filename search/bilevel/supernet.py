"""The supernet: one copy of the backbone with every candidate attached behind its gate."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import groupby

import torch
from torch import Tensor, nn

from sparsearch.search.tasks.types.registry import find_task_type
from sparsearch.spaces.attachment.attach import attach_modules, detach
from sparsearch.spaces.families.position import Position
from sparsearch.spaces.kinds import Kind
from sparsearch.spaces.kinds.module_base import Unit
from sparsearch.spaces.space import Space

__all__ = ["Supernet", "candidate_parts"]


class Supernet:
    """A model with a whole space attached; ``close`` takes it off again.

    Rank units of one position run as one pair of products. Gates are computed once per pass,
    for all candidates.

    Args:
        model: A model with a head; frozen but for the attached modules and the head.
        space: What is attached.
        task_type: Decides the loss.
        precision: Of the forward passes.

    Attributes:
        removals: (candidates,) whether each is something that is cut or pruned; on the CPU.
    """

    def __init__(self, model: nn.Module, space: Space, task_type: str, precision: str) -> None:
        self.model, self.precision = model, precision
        self.task_type = find_task_type(task_type)
        self.attachment = attach_modules(model, _units(space))
        self.attachment.advance(0, steps=10)  # masks prune nothing but what gates say
        self.removals = torch.tensor([c.role != "attach" for c in space.candidates])

    def loss(self, batch: dict[str, Tensor], z: Tensor) -> Tensor:
        """Loss of one pass with gates z: (candidates,)."""
        with self.attachment.gated(z):
            return self.task_type.loss(self.model, batch, self.precision)

    @contextmanager
    def alone(self, z: Tensor) -> Iterator[None]:
        """Run what has a gate above 0, and nothing else, inside the context, whatever is idle outside of it."""
        attachment = self.attachment
        before = [slot.idle for slot in attachment.slots]
        attachment.skip((z == 0).tolist())
        try:
            with attachment.gated(z):
                yield
        finally:
            for slot, idle in zip(attachment.slots, before, strict=True):
                slot.idle = idle

    def close(self) -> None:
        """Detach everything."""
        detach(self.model)


def candidate_parts(unit: Unit, name: str, value: Tensor, gates: int) -> tuple[Tensor, ...]:
    """Views of what each of a unit's candidates has of a tensor in the shape of a parameter.

    Args:
        unit: The unit.
        name: The parameter's, as the unit computes with it.
        value: In its shape.
        gates: Candidates of the unit; a parameter that they do not share out belongs to each of them.
    """
    if name not in unit.shared:
        return (value,) * gates
    along = value.movedim(unit.shared[name], 0)
    return torch.split(along, list(unit.shares) or 1)


def _units(space: Space) -> Iterator[tuple[Position, Kind, int, int]]:
    for (name, kind), group in groupby(space.candidates, key=lambda c: (c.position, c.kind)):
        sizes = [c.size for c in group]
        yield space.position(name), space.kinds[kind], sum(sizes), len(sizes)
