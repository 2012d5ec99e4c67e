"""How the outputs of each row change along directions of candidates: columns of a Jacobian, summed as they come.

One forward pass records what each unit reads, and adds zeros to what it writes. The gradient of an output with respect
to these zeros is a row's own, and its product with what a unit writes along a direction is the row's derivative. No row
needs a backward pass of its own, no unit needs to say how it is differentiated.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor, nn

from sparsearch.errors import ModelStateError
from sparsearch.search.bilevel.supernet import Supernet
from sparsearch.search.strategies.linearised.directions import Move
from sparsearch.search.strategies.linearised.explained import Explained
from sparsearch.search.strategies.linearised.forward_selection import LeastSquares
from sparsearch.search.tasks.task import token_batches
from sparsearch.search.training.device import frozen_cast_once
from sparsearch.spaces.attachment.attached_unit import AttachedUnit

__all__ = ["jacobian_columns", "least_squares"]

_TOKENS = 512
"""Tokens of a batch at most: gradients of all explained outputs are held for one batch."""


@dataclass(frozen=True)
class _Call:
    """One call of a unit: what it read, also of its linear, and the zeros that were added to what it wrote."""

    unit: int
    read: Tensor
    host: tuple[Tensor, ...]
    added: Tensor


def least_squares(supernet: Supernet, explained: Explained, moves: Sequence[Move]) -> LeastSquares:
    """The linear model's normal equations on some rows; memory does not grow with the rows.

    Args:
        supernet: With a warm head and untrained units.
        explained: What should change, and the rows.
        moves: The columns: all directions of the first candidate, then those of the next one.

    Raises:
        ModelStateError: If a unit does not read its rows one by one.
    """
    model, rows = supernet.model, explained.rows
    device = next(model.parameters()).device
    weights = explained.weights.to(device).sqrt()[:, None]
    columns = len(supernet.removals) * len(moves)
    gram = torch.zeros(columns, columns, dtype=torch.float64, device=device)
    target = torch.zeros(columns, dtype=torch.float64, device=device)
    model.eval()
    with frozen_cast_once(model, supernet.precision):
        for batch in token_batches(rows, _TOKENS, device):
            found = jacobian_columns(supernet, batch, explained, moves)
            weighted = (found * weights).flatten(0, 1)
            gram += weighted.T @ weighted
            target += found.flatten(0, 1).T @ explained.targets(batch).to(found).flatten()
    return LeastSquares(gram / len(rows), target / len(rows))


def jacobian_columns(
    supernet: Supernet, batch: dict[str, Tensor], explained: Explained, moves: Sequence[Move]
) -> Tensor:
    """(rows, outputs explained, columns): derivatives of each row's outputs along each direction.

    Units are linear in what trains first (the others of their values are multiplied by zeros), so that what they write
    at a direction is the derivative. Of rounded units it is what their rounded values write.

    Args:
        supernet: With untrained units.
        batch: Rows, as ``batches`` gives them.
        explained: What the outputs are.
        moves: The columns.

    Raises:
        ModelStateError: If a unit does not read its rows one by one.
    """
    attachment = supernet.attachment
    with _recorded(attachment.slots, len(batch["rows"])) as calls:
        found_outputs = explained.outputs(supernet, batch)
    rows, outputs = found_outputs.shape
    of_outputs = [
        torch.autograd.grad(total, [c.added for c in calls], retain_graph=True, allow_unused=True)
        for total in found_outputs.sum(0)
    ]
    starts = [0, *accumulate(attachment.gate_sizes)]
    found = found_outputs.new_zeros(rows, outputs, starts[-1], len(moves))
    for call, own in zip(calls, zip(*of_outputs, strict=True), strict=True):
        gradient = torch.stack([_flat(g, call.added) for g in own], dim=1)
        unit, places = attachment.slots[call.unit].unit, slice(*starts[call.unit : call.unit + 2])
        written = []
        for move in moves:
            with _moved(unit, move):
                written += _written(unit, call, attachment.gate_sizes[call.unit])
        products = gradient @ torch.stack(written, dim=1).mT
        found[:, :, places] += products.view(rows, outputs, len(moves), -1).mT
    return found.flatten(2)


def _flat(gradient: Tensor | None, added: Tensor) -> Tensor:
    """(rows, values written in a row); zeros where nothing depends on what was written."""
    return (torch.zeros_like(added) if gradient is None else gradient).flatten(1)


def _written(unit: nn.Module, call: _Call, gates: int) -> list[Tensor]:
    """What each candidate of a unit writes, the others closed: (rows, values written in a row)."""
    x = call.read.to(next(unit.parameters()).dtype)
    each: Sequence[Tensor | None] = [None] if gates == 1 else list(torch.eye(gates).to(x))
    changes = [
        unit.forward(x, gate, *call.host).expand(call.added.shape).flatten(1) for gate in each
    ]
    return [change.to(call.added.dtype) for change in changes]


@contextlib.contextmanager
def _recorded(slots: Sequence[AttachedUnit], rows: int) -> Iterator[list[_Call]]:
    """The calls of all units inside the context, in their order."""
    calls: list[_Call] = []

    def record(number: int, unit: nn.Module, args: tuple[Tensor, ...], change: Tensor) -> Tensor:
        slot, x = slots[number], args[0]
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
        host = tuple(seen.detach() for seen in args[2:])
        calls.append(_Call(number, x.detach(), host, added))
        return change + added

    handles = [
        slot.unit.register_forward_hook(
            lambda unit, args, change, number=number: record(number, unit, args, change)
        )
        for number, slot in enumerate(slots)
    ]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


@contextlib.contextmanager
def _moved(unit: nn.Module, move: Move) -> Iterator[None]:
    """A unit's parameters moved along a direction, inside the context; nothing is differentiated there."""
    parameters = list(unit.parameters())
    before = [parameter.detach().clone() for parameter in parameters]
    with torch.no_grad():
        try:
            for parameter in parameters:
                parameter.add_(move[parameter])
            yield
        finally:
            for parameter, value in zip(parameters, before, strict=True):
                parameter.copy_(value)
