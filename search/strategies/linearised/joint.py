"""Joint selection: the order in which a linear model of the outputs selects candidates."""

from __future__ import annotations

import torch
from torch import Tensor

from sparsearch.errors import ConfigError
from sparsearch.search.bilevel.supernet import Supernet
from sparsearch.search.strategies.base import RankingContext
from sparsearch.search.strategies.linearised.directions import find_directions
from sparsearch.search.strategies.linearised.explained import explain
from sparsearch.search.strategies.linearised.forward_selection import forward_selection
from sparsearch.search.strategies.linearised.jacobian import least_squares
from sparsearch.search.tasks.task import subset
from sparsearch.search.tasks.types.base import TaskType, TokenTask
from sparsearch.search.tasks.types.sequence import SequenceTask
from sparsearch.search.training.gradients import sample_rows
from sparsearch.spaces.space import Space

__all__ = ["joint_scores", "misfits"]

_MOST_COLUMNS = 6000
"""Two Gram matrices of so many columns take 0.6 GB."""


def misfits(space: Space, task_type: TaskType) -> list[str]:
    """Why candidates of a space cannot be selected under a linear model; empty if they can."""
    problems = []
    if removed := sorted({c.kind for c in space.candidates if c.role != "attach"}):
        problems.append(
            f"linearised: selects what is attached, and the space has {', '.join(removed)}, which remove: leave these "
            "kinds out, or search with s3pet"
        )
    inside = {c.position for c in space.candidates if space.position(c.position).in_weight}
    if inside:
        problems.append(
            f"linearised: sees what units add to outputs, and {len(inside)} positions of experts and routers change a "
            "weight: leave them out (on:), or search with s3pet"
        )
    if len(space.candidates) > _MOST_COLUMNS:
        problems.append(
            f"linearised: {len(space.candidates)} candidates, and memory is for {_MOST_COLUMNS}: narrow the space "
            "(on:), or search with s3pet"
        )
    if not isinstance(task_type, SequenceTask | TokenTask):
        problems.append(
            "linearised: explains a loss of rows or of tokens, and cannot take that of this task type apart: search "
            "with s3pet, or probe"
        )
    return problems


def joint_scores(context: RankingContext, supernet: Supernet, seed: int) -> Tensor:
    """(candidates,) scores: the number of candidates that are selected after this one.

    Half of the sampled rows fit the linear model, the other half judges it. What a candidate brings is counted beside
    all that were selected before it, so that one order serves every budget.

    Args:
        context: Space and task, of whose training split rows are sampled; settings of the search and of training.
        supernet: With a warm head and untrained units.
        seed: Of the sample.

    Raises:
        ConfigError: If there are misfits.
        ModelStateError: If a unit does not read its rows one by one.
    """
    space, task, config = context.space, context.task, context.search.linearised
    if problems := misfits(space, task.behaviour):
        raise ConfigError(problems)
    columns = min(config.columns, _MOST_COLUMNS // len(space.candidates))
    rows = sample_rows(task, seed, config.rows)
    halves = [subset(rows, half) for half in torch.arange(len(rows)).chunk(2)]
    fit, held_out = explain(supernet, task, halves, config.outputs, seed)
    moves = find_directions(supernet, fit, columns, context.train)
    fitted, judged = (least_squares(supernet, part, moves) for part in (fit, held_out))
    costs = torch.tensor([max(1, c.bytes) for c in space.candidates])
    order, _ = forward_selection(fitted, judged, costs, config.ridge)
    scores = torch.empty(len(order))
    scores[order] = torch.arange(len(order) - 1, -1, -1.0)
    return scores
