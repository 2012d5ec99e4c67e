"""Slimming coefficients (EarlyBERT, Chen et al. 2021, sections 3.1 and 3.2): a ticket drawn early in full fine-tuning.

Every head and block of neurons is multiplied by a coefficient that starts at 1 and trains with the whole model
under an l1 penalty. The reference's coefficients share the weights' rate, at which they move by less than
0.4% before the ticket is drawn; here they have their own.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from sparsearch.config.study import SearchConfig, TrainConfig
from sparsearch.search.bilevel.early_stopping import SelectionMonitor
from sparsearch.search.bilevel.supernet import Supernet
from sparsearch.search.selection.selector import Selector
from sparsearch.search.strategies.base import RankingContext, Strategy
from sparsearch.search.tasks.task import Task, batches
from sparsearch.search.training.optimiser import NanGuard, linear_schedule
from sparsearch.search.training.seeds import derive
from sparsearch.search.training.train import Observer, silent, steps_per_epoch
from sparsearch.search.training.warm_start import new_head
from sparsearch.spaces.budget import Budget
from sparsearch.spaces.ranking import Ranking
from sparsearch.spaces.space import Space

__all__ = ["learn_coefficients", "shares", "steps_to_draw", "NetworkSlimming"]


def learn_coefficients(
    context: RankingContext,
    settled: Callable[[Sequence[float]], bool],
    seed: int,
    observe: Observer = silent,
) -> tuple[tuple[float, ...], int]:
    """Train a copy of the model with a coefficient for everything that can be removed, until the ticket is drawn.

    Args:
        context: A model with a head, as it was when this returns; a space of heads and neurons only; when the ticket
            is drawn at the latest, penalty, allocation, early stop; rates, batch size, precision.
        settled: Told the scores now and then; whether the ticket is the same as before.
        seed: Of the batches.
        observe: Told of every step.

    Returns:
        Scores, highest for what is removed first, and the steps taken.

    Raises:
        TrainingDiverged: If a loss is NaN or infinite.
    """
    model, space, task = context.model, context.space, context.task
    search, train = context.search, context.train
    whole = copy.deepcopy(model)
    supernet = Supernet(whole, space, task.type, train.precision)
    device = next(whole.parameters()).device
    c = nn.Parameter(torch.ones(len(space.candidates), device=device))
    weights = list(whole.parameters())
    for weight in weights:
        weight.requires_grad_(True)
    optimizer = torch.optim.AdamW(
        [{"params": weights, "lr": train.full_lr}, {"params": [c], "lr": search.coefficient_lr}],
        weight_decay=0.0,
        fused=True,
    )
    steps = steps_to_draw(search, train, task)
    whole_training = train.epochs * steps_per_epoch(task, train)
    schedule = linear_schedule(optimizer, max(steps, whole_training), train.warmup)
    generator = torch.Generator().manual_seed(derive(seed, "slimming"))
    watch = NanGuard("search", "lower train.full_lr or search.coefficient_lr")
    whole.train(train.dropout)
    step = 0
    while step < steps:
        for batch in batches(task.train, train.batch_size, device, generator):
            loss = supernet.loss(batch, 1 - c) + search.l1 * c.abs().sum()
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(weights, train.clip)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            step += 1
            watch.see(step, loss)
            observe("search", step, steps)
            look = search.early_stop and step % search.stop_every == 0
            if step == steps or (look and settled(shares(space, c, search.allocation))):
                watch.look(step)
                return shares(space, c, search.allocation), step
    return shares(space, c, search.allocation), step


def steps_to_draw(search: SearchConfig, train: TrainConfig, task: Task) -> int:
    """Steps until the ticket is drawn: ``search.steps``, or the share ``search.draw`` of an epoch, rounded up."""
    if search.draw is None:
        return search.steps
    return math.ceil(search.draw * steps_per_epoch(task, train))


def shares(
    space: Space, coefficients: Tensor, allocation: str | Mapping[str, str]
) -> tuple[float, ...]:
    """Scores from coefficients: the share of equals that is not smaller; ties go to the earlier one.

    Cutting by it takes the same share of the heads as of the neurons, ``global`` over the layers or
    ``layerwise``, the same in each. A mapping says which for each kind; one that it leaves out is ``global``.
    """
    values = coefficients.detach().cpu()
    scores = torch.zeros(len(values), dtype=torch.float64)
    groups: dict[object, list[int]] = {}
    for i, c in enumerate(space.candidates):
        how = allocation if isinstance(allocation, str) else allocation.get(c.kind, "global")
        groups.setdefault(c.kind if how == "global" else c.position, []).append(i)
    for group in groups.values():
        order = torch.argsort(values[group], stable=True)
        places = torch.empty(len(group), dtype=torch.float64)
        places[order] = torch.arange(len(group), dtype=torch.float64)
        scores[group] = 1 - places / len(group)
    return tuple(scores.tolist())


class NetworkSlimming(Strategy):
    """Slimming coefficients, trained with the whole model until the ticket stops changing (EarlyBERT)."""

    name: ClassVar[str] = "slimming"
    train_settings: ClassVar[frozenset[str]] = frozenset(
        {"full_lr", "batch_size", "epochs", "warmup", "clip", "weight_decay"}
    )

    def check(self, space: Space) -> list[str]:
        """It ranks heads and neurons alone."""
        if len(space.removals) < len(space.candidates):
            return ["the slimming strategy ranks heads and neurons; the space has other kinds"]
        return []

    def rank(
        self, context: RankingContext, budget: Budget, seed: int, observe: Observer
    ) -> Ranking:
        """Slimming coefficients, trained with the whole model until the ticket stops changing (EarlyBERT)."""
        search, space = context.search, context.space
        new_head(context.model, context.task, seed, "head")
        if context.train.steps_before_cut:
            context.start().load_head(context.model)
        watch = SelectionMonitor(
            [Selector(space, budget, "greedy", context.task.max_length)],
            search.stop_distance,
            search.stop_length,
        )
        scores, steps = learn_coefficients(context, watch.settled, seed, observe)
        return Ranking(scores, self.name, seed, steps)
