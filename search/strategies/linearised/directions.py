"""Along which few directions the values of each candidate move.

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
from sparsearch.search.strategies.linearised.explained import NO_RANK, Explained
from sparsearch.search.strategies.linearised.recording import tokens_of_batch
from sparsearch.search.tasks.task import token_batches
from sparsearch.search.training.device import frozen_cast_once
from sparsearch.search.training.optimiser import rate_of_each
from sparsearch.spaces.kinds.rounding import trained_tensors

__all__ = ["Move", "find_directions"]

Move = dict[Tensor, Tensor]
"""Parameter -> its change."""

_TOKENS = 2048
"""Tokens of a batch at most. A pass over few tokens takes almost as long as one over many, with so many units."""


def find_directions(
    supernet: Supernet, explained: Explained, columns: int, train: TrainConfig
) -> tuple[Move, ...]:
    """The first partial-least-squares weights of each candidate: moves of all parameters, each candidate's in its part.

    A direction of unit norm is stretched to what one step of Adam moves along it: its learning rate times the sum of
    the direction's absolute values. Coefficients are then counted in steps, whatever the kind and its number of values.

    Args:
        supernet: With a warm head and untrained units.
        explained: What should change.
        columns: Directions of each candidate; no more than there are pulls.
        train: Learning rates.
    """
    sums = _covariances(supernet, explained)
    count = min(columns, len(sums))
    moves = tuple({p: torch.zeros_like(p) for p in sums[0]} for _ in range(count))
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
    return moves


def _covariances(supernet: Supernet, explained: Explained) -> list[Move]:
    """J^T R: the gradient of each pull."""
    model = supernet.model
    parameters = list(supernet.attachment.units.parameters())
    device = parameters[0].device
    sums: list[Move] = [
        {p: torch.zeros_like(p) for p in parameters} for _ in range(explained.pulls)
    ]
    model.eval()
    tokens = tokens_of_batch(supernet, _TOKENS)
    with frozen_cast_once(model, supernet.precision):
        for number, batch in enumerate(token_batches(explained.rows, tokens, device)):
            for place, pull in explained.pulled(supernet, batch, number):
                found = torch.autograd.grad(pull, parameters, retain_graph=True, allow_unused=True)
                for parameter, gradient in zip(parameters, found, strict=True):
                    if gradient is not None:
                        sums[place][parameter] += gradient
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
    usable = eigenvalues > NO_RANK * eigenvalues[-1]
    weights = torch.where(usable, vectors / norms.where(usable, torch.ones_like(norms)), 0.0)
    return weights.T.flip(0)[:count].to(values.dtype)
