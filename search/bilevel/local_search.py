"""Swaps: a few exchanges across the edge of the cut, each judged by the loss of the hard structure."""

from __future__ import annotations

from collections import deque

import torch
from torch import Tensor

from sparsearch.errors import InfeasibleError
from sparsearch.search.bilevel.supernet import Supernet
from sparsearch.search.selection.selector import Selector
from sparsearch.search.tasks.task import Task
from sparsearch.spaces.space import Space

__all__ = ["hard_gates", "swap"]


def hard_gates(selector: Selector, scores: Tensor) -> Tensor:
    """Gates of the structure that scores select: 1.0 for what is selected, else 0.0.

    Removals that are reconstructed stay open: a gate closes without reconstruction.
    """
    candidates = selector.space.candidates
    z = torch.zeros(len(candidates))
    chosen = selector.indices(scores.tolist())
    z[[i for i in chosen if not candidates[i].compensates]] = 1.0
    return z


def swap(
    supernet: Supernet, task: Task, selector: Selector, alpha: Tensor, attempts: int
) -> Tensor:
    """Exchange the scores of the weakest selected and the strongest left candidates while that lowers the loss.

    The two compete under one limit: both are attached, removed, or masked; these groups take turns. A candidate that
    was tried is not tried again, whatever came of it.

    Args:
        supernet: With its module weights as the search left them.
        task: Its validation split judges.
        selector: Space, budget and rule.
        alpha: (candidates,) scores on the CPU.
        attempts: Exchanges tried that change the selection; each costs one pass over the validation split.

    Returns:
        Scores whose selection has no higher validation loss than that of ``alpha``.
    """
    scores = alpha.clone()
    z = hard_gates(selector, scores)
    best, tried = _loss(supernet, task, z), set[int]()
    groups = deque(_rivals(selector.space))
    while attempts and groups:
        group = groups.popleft()
        order = [i for i in torch.argsort(scores).tolist() if i in group and i not in tried]
        inside = [i for i in order if z[i] > 0]
        outside = [i for i in reversed(order) if z[i] == 0]
        if not inside or not outside:
            continue
        groups.append(group)
        weakest, strongest = inside[0], outside[0]
        tried.add(strongest)
        changed = scores.clone()
        changed[[weakest, strongest]] = scores[[strongest, weakest]]
        try:
            proposal = hard_gates(selector, changed)
        except InfeasibleError:  # scores or stand-ins of these exceed the budget
            continue
        if torch.equal(proposal, z):
            continue
        attempts -= 1
        loss = _loss(supernet, task, proposal)
        if loss < best:
            scores, z, best = changed, proposal, loss
            tried.add(weakest)
    return scores


def _rivals(space: Space) -> list[set[int]]:
    """Candidates that compete under one limit: those that are attached, cut, masked.

    Cuts that something stands in for are left out: gates close without it.
    """
    groups: dict[str, set[int]] = {}
    for i, c in enumerate(space.candidates):
        if not c.compensates:
            groups.setdefault(c.role, set()).add(i)
    return list(groups.values())


def _loss(supernet: Supernet, task: Task, z: Tensor) -> float:
    device = next(supernet.model.parameters()).device
    with supernet.alone(z.to(device)):
        return task.behaviour.split_loss(supernet.model, task.validation, supernet.precision)
