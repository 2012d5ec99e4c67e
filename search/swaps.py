"""Swaps: a few exchanges across the edge of the cut, each judged by the loss of the hard structure."""

from __future__ import annotations

import torch
from torch import Tensor

from sparsearch.search.cut import kept
from sparsearch.search.evaluate import loss_of, predict
from sparsearch.search.supernet import Supernet
from sparsearch.search.tasks import Task
from sparsearch.spaces.budget import Budget
from sparsearch.spaces.space import Space

__all__ = ["hard_gates", "swap"]


def hard_gates(
    space: Space, scores: Tensor, budget: Budget, rule: str, tokens: int = 128
) -> Tensor:
    """Gates of the structure that scores are cut to: 1.0 for what is kept, else 0.0."""
    z = torch.zeros(len(space.candidates))
    z[kept(space, scores.tolist(), budget, rule, tokens)] = 1.0
    return z


def swap(
    supernet: Supernet,
    task: Task,
    space: Space,
    alpha: Tensor,
    budget: Budget,
    rule: str,
    attempts: int,
) -> Tensor:
    """Exchange the scores of the weakest kept and the strongest left candidates while that lowers the loss.

    A candidate that was tried is not tried again, whatever came of it.

    Args:
        supernet: With its module weights as the search left them.
        task: Its validation split judges.
        space: The candidates.
        alpha: (candidates,) scores on the CPU.
        budget: At which the structure is cut.
        rule: Of the cut.
        attempts: Exchanges tried; each costs one pass over the validation split.

    Returns:
        Scores whose cut has no higher validation loss than that of ``alpha``.
    """
    scores = alpha.clone()
    z = hard_gates(space, scores, budget, rule, task.max_length)
    best, tried = _loss(supernet, task, z), set[int]()
    for _ in range(attempts):
        order = [i for i in torch.argsort(scores).tolist() if i not in tried]
        inside = [i for i in order if z[i] > 0]
        outside = [i for i in reversed(order) if z[i] == 0]
        if not inside or not outside:
            break
        weakest, strongest = inside[0], outside[0]
        changed = scores.clone()
        changed[[weakest, strongest]] = scores[[strongest, weakest]]
        proposal = hard_gates(space, changed, budget, rule, task.max_length)
        loss = _loss(supernet, task, proposal)
        if loss < best:
            scores, z, best = changed, proposal, loss
            tried.add(weakest)
        tried.add(strongest)
    return scores


def _loss(supernet: Supernet, task: Task, z: Tensor) -> float:
    device = next(supernet.model.parameters()).device
    with supernet.hard(z.to(device)):
        logits = predict(supernet.model, task.validation, supernet.precision)
    return float(loss_of(logits, task.validation.labels, task.type))
