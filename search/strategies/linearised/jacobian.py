"""How the outputs of each row change along directions of candidates: columns of a Jacobian, summed as they come.

One forward pass records what each unit reads, and puts zeros in the place of what it writes. The gradient of an output
with respect to these zeros is a row's own, and its product with what a unit writes along a direction is the row's
derivative. No row needs a backward pass of its own, no unit needs to say how it is differentiated.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor, nn

from sparsearch.search.bilevel.supernet import Supernet
from sparsearch.search.strategies.linearised.directions import Move
from sparsearch.search.strategies.linearised.explained import Explained
from sparsearch.search.strategies.linearised.forward_selection import LeastSquares
from sparsearch.search.strategies.linearised.recording import Call, recorded, tokens_of_batch
from sparsearch.search.tasks.task import token_batches
from sparsearch.search.training.device import frozen_cast_once
from sparsearch.spaces.kinds.rounding import settled

__all__ = ["jacobian_columns", "least_squares", "moved_units"]

_TOKENS = 512
"""Tokens of a batch at most."""


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
    moved = moved_units(supernet, moves)
    tokens = tokens_of_batch(supernet, _TOKENS, len(weights))
    with frozen_cast_once(model, supernet.precision):
        for batch in token_batches(rows, tokens, device):
            found = jacobian_columns(supernet, batch, explained, moved)
            weighted = (found * weights).flatten(0, 1)
            gram += weighted.T @ weighted
            target += found.flatten(0, 1).T @ explained.targets(batch).to(found).flatten()
    return LeastSquares(gram / len(rows), target / len(rows))


def moved_units(supernet: Supernet, moves: Sequence[Move]) -> list[list[nn.Module]]:
    """Copies of all units, moved along each direction; rounded values are rounded once and for all."""
    return [[_moved(slot.unit, move) for slot in supernet.attachment.slots] for move in moves]


def jacobian_columns(
    supernet: Supernet,
    batch: dict[str, Tensor],
    explained: Explained,
    moved: Sequence[Sequence[nn.Module]],
) -> Tensor:
    """(rows, outputs explained, columns): derivatives of each row's outputs along each direction.

    Units are linear in what trains first (the others of their values are multiplied by zeros), so that what they write
    at a direction is the derivative. Of rounded units it is what their rounded values write.

    Args:
        supernet: With untrained units.
        batch: Rows, as ``batches`` gives them.
        explained: What the outputs are.
        moved: The columns, as ``moved_units`` gives them.

    Raises:
        ModelStateError: If a unit does not read its rows one by one.
    """
    attachment = supernet.attachment
    with recorded(supernet, len(batch["rows"])) as calls:
        found_outputs = explained.outputs(supernet, batch)
    rows, outputs = found_outputs.shape
    of_outputs = [
        torch.autograd.grad(total, [c.added for c in calls], retain_graph=True, allow_unused=True)
        for total in found_outputs.sum(0)
    ]
    starts = [0, *accumulate(attachment.gate_sizes)]
    found = found_outputs.new_zeros(rows, outputs, starts[-1], len(moved))
    for call, own in zip(calls, zip(*of_outputs, strict=True), strict=True):
        gradient = torch.stack([_flat(g, call.added) for g in own], dim=1)
        for number in call.units:
            gates = attachment.gate_sizes[number]
            written = [w for units in moved for w in _written(units[number], call, gates)]
            products = gradient @ torch.stack(written, dim=1).mT
            places = slice(*starts[number : number + 2])
            found[:, :, places] += products.view(rows, outputs, len(moved), -1).mT
    return found.flatten(2)


def _flat(gradient: Tensor | None, added: Tensor) -> Tensor:
    """(rows, values written in a row); zeros where nothing depends on what was written."""
    return (torch.zeros_like(added) if gradient is None else gradient).flatten(1)


@torch.no_grad()
def _written(unit: nn.Module, call: Call, gates: int) -> list[Tensor]:
    """What each candidate of a unit writes, the others closed: (rows, values written in a row)."""
    each: Sequence[Tensor | None] = [None] if gates == 1 else list(torch.eye(gates).to(call.read))
    return [call.written(unit, gate).flatten(1).to(call.added.dtype) for gate in each]


@torch.no_grad()
def _moved(unit: nn.Module, move: Move) -> nn.Module:
    """A copy of a unit, its parameters moved along a direction."""
    parameters = list(unit.parameters())
    before = [parameter.clone() for parameter in parameters]
    try:
        for parameter in parameters:
            parameter.add_(move[parameter])
        return settled(unit)
    finally:
        for parameter, value in zip(parameters, before, strict=True):
            parameter.copy_(value)
