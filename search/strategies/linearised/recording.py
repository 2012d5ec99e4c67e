"""What each unit reads in a pass, and zeros in the place of what it writes, by which the pass is differentiated."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sparsearch.errors import ModelStateError
from sparsearch.search.bilevel.supernet import Supernet
from sparsearch.spaces.attachment.attached_unit import AttachedUnit

__all__ = ["Call", "recorded", "tokens_of_batch"]

_NUMBERS = 2**28
"""Numbers that a pass holds of what units write and of its gradients: 1 GiB in float32."""


@dataclass(frozen=True)
class Call:
    """One call of a unit, which stands for all units that read and write at its place.

    Attributes:
        units: Numbers of these units: one kind at one position, in several precisions.
        read: What it read.
        host: What it read of its linear.
        added: (rows, ..., features) zeros in the place of what it wrote, or of what it wrote at every token.
    """

    units: tuple[int, ...]
    read: Tensor
    host: tuple[Tensor, ...]
    added: Tensor

    def written(self, unit: nn.Module, gate: Tensor | None) -> Tensor:
        """What a unit would write, in the shape of ``added``."""
        x = self.read.to(next(unit.parameters()).dtype)
        change: Tensor = unit.forward(x, gate, *self.host)
        return change.expand(self.added.shape)


@contextlib.contextmanager
def recorded(supernet: Supernet, rows: int) -> Iterator[list[Call]]:
    """The calls of all units inside the context, in their order; there no unit changes anything.

    Untrained units write zeros, and nothing that they read has a gradient because of them. So the backward pass is the
    backbone's own, however many units are attached.

    Args:
        supernet: With untrained units.
        rows: Of the batch.

    Raises:
        ModelStateError: If a unit does not read its rows one by one.
    """
    slots = supernet.attachment.slots
    calls: list[Call] = []
    places = _places(slots)

    def record(units: tuple[int, ...], args: tuple[Tensor, ...], change: Tensor) -> Tensor:
        slot, x = slots[units[0]], args[0]
        if len(x) != rows:
            raise ModelStateError(
                f"{slot.kind.name} at {slot.position.name} reads {len(x)} rows of a batch of {rows}: what a row's "
                "outputs owe to it cannot be told",
                "leave that position out of the space (on:), or search with the probe",
            )
        shape = (*change.shape,)
        if slot.unit.constant:
            shape = (rows, *(1 for _ in x.shape[1:-1]), change.shape[-1])
        added = torch.zeros(shape, device=x.device, requires_grad=True)
        calls.append(Call(units, x.detach(), tuple(seen.detach() for seen in args[2:]), added))
        return added

    idle = [slot.idle for slot in slots]
    for units in places:
        for number in units[1:]:
            slots[number].idle = True
    handles = [
        slots[units[0]].unit.register_forward_hook(
            lambda unit, args, change, units=units: record(units, args, change)
        )
        for units in places
    ]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()
        for slot, before in zip(slots, idle, strict=True):
            slot.idle = before


def tokens_of_batch(supernet: Supernet, most: int, outputs: int | None = None) -> int:
    """How many tokens of a batch fit into memory.

    Args:
        supernet: With what is attached.
        most: Of them, where memory is for more.
        outputs: Gradients that are held of each place; if None, what each unit writes is held, with its graph.
    """
    slots = supernet.attachment.slots
    if outputs is None:
        numbers = sum(slot.width for slot in slots)
    else:
        numbers = outputs * sum(slots[units[0]].width for units in _places(slots))
    return max(1, min(most, _NUMBERS // numbers))


def _places(slots: Sequence[AttachedUnit]) -> list[tuple[int, ...]]:
    """Numbers of the units at each place: those of one class of kinds at one position."""
    found: dict[tuple[str, type], list[int]] = {}
    for number, slot in enumerate(slots):
        found.setdefault((slot.position.name, type(slot.kind)), []).append(number)
    return [tuple(numbers) for numbers in found.values()]
