"""What a linear model explains, and along which few directions the values of each candidate move.

A candidate has hundreds of values. Its first partial-least-squares weights reduce them to a few: combinations of
values whose outputs have the largest covariance with the residuals. They are the left singular vectors of J^T R, with
J the candidate's Jacobian and R the residuals, and need sums over rows alone, no row's own Jacobian.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sparsearch.config.train import TrainConfig
from sparsearch.search.bilevel.supernet import Supernet, candidate_parts
from sparsearch.search.tasks.task import Split, Task, token_batches
from sparsearch.search.tasks.types.sequence import SequenceTask
from sparsearch.search.training.device import frozen_cast_once
from sparsearch.search.training.evaluate import forward, predict
from sparsearch.search.training.optimiser import rate_of_each
from sparsearch.spaces.kinds.rounding import trained_tensors

__all__ = ["Directions", "Residuals", "find_directions", "find_residuals", "main_outputs"]

Move = dict[Tensor, Tensor]
"""Parameter -> its change."""

_TOKENS = 2048
"""Tokens of a batch at most. A pass over few tokens takes almost as long as one over many, with so many units."""

_RANK = 1e-9
"""Share of the largest eigenvalue below which one counts as zero."""


@dataclass(frozen=True)
class Residuals:
    """Rows, and how a model should change its outputs on them.

    Attributes:
        rows: The rows.
        values: (rows, outputs) minus the gradient of each row's loss with respect to the model's outputs: one-hot minus
            softmax for classification, two times the error for regression.
    """

    rows: Split
    values: Tensor


@dataclass(frozen=True)
class Directions:
    """Columns of the linear model: for each candidate the same number of directions of its values.

    Attributes:
        outputs: (outputs of the model, outputs explained) orthonormal combinations.
        moves: One for each direction of a candidate: the changes of all parameters, each candidate's own in its part.
    """

    outputs: Tensor
    moves: tuple[Move, ...]


def find_residuals(supernet: Supernet, task: Task, rows: Split) -> Residuals:
    """Residuals of the model as it is, nothing attached, on some rows.

    Args:
        supernet: With a warm head.
        task: One whose rows have one vector of outputs each.
        rows: Of the task's training split.
    """
    behaviour = task.behaviour
    assert isinstance(behaviour, SequenceTask), "the strategy refuses other task types"
    with supernet.alone(torch.zeros(len(supernet.removals))):
        logits = predict(supernet.model, rows, supernet.precision).requires_grad_()
    loss = behaviour.loss_of(logits, rows.labels) * len(rows)
    (gradient,) = torch.autograd.grad(loss, logits)
    return Residuals(rows, -gradient)


def main_outputs(residuals: Tensor, most: int) -> Tensor:
    """The principal directions of residuals (rows, outputs): (outputs, at most ``most``), orthonormal.

    Those along which there is no residual are left out: of softmax's outputs, the sum.

    >>> main_outputs(torch.tensor([[1.0, -1.0], [-2.0, 2.0]]), most=8).abs()
    tensor([[0.7071],
            [0.7071]])
    """
    values, vectors = torch.linalg.eigh(residuals.double().T @ residuals.double())
    count = int((values > _RANK * values[-1]).sum())
    main: Tensor = vectors[:, -max(1, min(most, count)) :].flip(1)
    return main.float()


def find_directions(
    supernet: Supernet, residuals: Residuals, outputs: Tensor, columns: int, train: TrainConfig
) -> Directions:
    """The first partial-least-squares weights of each candidate.

    A direction of unit norm is stretched to what one step of Adam moves along it: its learning rate times the sum of
    the direction's absolute values. Coefficients are then counted in steps, whatever the kind and its number of values.

    Args:
        supernet: With a warm head and untrained units.
        residuals: Those to be explained.
        outputs: (outputs, outputs explained) see ``main_outputs``.
        columns: Directions of each candidate; no more than outputs are explained.
        train: Learning rates.
    """
    sums = _covariances(supernet, residuals, outputs)
    count = min(columns, len(sums))
    moves = [{p: torch.zeros_like(p) for p in sums[0]} for _ in range(count)]
    rates = rate_of_each(supernet.model, train)
    for own in _candidates(supernet, [*sums, *moves]):
        covariances, targets = own.parts[: len(sums)], own.parts[len(sums) :]
        values = torch.stack([torch.cat([t.flatten() for t in parts]) for parts in covariances])
        for weights, parts in zip(_leading(values, count), targets, strict=True):
            direction = weights @ values
            direction *= rates[own.first] * direction.abs().sum()
            sizes = [part.numel() for part in parts]
            for part, new in zip(parts, direction.split(sizes), strict=True):
                part.copy_(new.view(part.shape))
    return Directions(outputs, tuple(moves))


def _covariances(supernet: Supernet, residuals: Residuals, outputs: Tensor) -> list[Move]:
    """J^T R: for each output explained, the gradient of its covariance with the residuals."""
    model, rows = supernet.model, residuals.rows
    parameters = list(supernet.attachment.units.parameters())
    device = parameters[0].device
    targets = residuals.values @ outputs
    sums: list[Move] = [
        {p: torch.zeros_like(p) for p in parameters} for _ in range(outputs.shape[1])
    ]
    model.eval()
    with frozen_cast_once(model, supernet.precision):
        for batch in token_batches(rows, _TOKENS, device):
            explained = forward(model, batch, supernet.precision) @ outputs.to(device)
            weighted = (explained * targets[batch["rows"]].to(device)).sum(0)
            for covariance, total in zip(weighted, sums, strict=True):
                found = torch.autograd.grad(
                    covariance, parameters, retain_graph=True, allow_unused=True
                )
                for parameter, gradient in zip(parameters, found, strict=True):
                    if gradient is not None:
                        total[parameter] += gradient
    return sums


@dataclass(frozen=True)
class _Own:
    """What one candidate has of several moves: its parts of the parameters, move by move, and its first parameter."""

    first: Tensor
    parts: list[list[Tensor]]


def _candidates(supernet: Supernet, moves: Sequence[Move]) -> Iterator[_Own]:
    """Views of each candidate's parts, in the order of the space."""
    attachment = supernet.attachment
    for slot, gates in zip(attachment.slots, attachment.gate_sizes, strict=True):
        tensors = list(trained_tensors(slot.unit))
        parts = [
            [candidate_parts(slot.unit, name, move[p], gates) for name, p in tensors]
            for move in moves
        ]
        for i in range(gates):
            yield _Own(tensors[0][1], [[part[i] for part in of_move] for of_move in parts])


def _leading(values: Tensor, count: int) -> Tensor:
    """(count, rows) weights whose products with values (rows, n) are its leading right singular vectors, or zero."""
    eigenvalues, vectors = torch.linalg.eigh((values @ values.T).double())
    norms = eigenvalues.clamp_min(0).sqrt()
    usable = eigenvalues > _RANK * eigenvalues[-1]
    weights = torch.where(usable, vectors / norms.where(usable, torch.ones_like(norms)), 0.0)
    return weights.T.flip(0)[:count].to(values.dtype)
