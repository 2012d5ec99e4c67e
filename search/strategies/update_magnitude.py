"""DSEE's choice of what to cut (Chen et al. 2023, section 3): units whose weights fine-tuning moved least."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from sparsearch.search.selection.masks import equal_shares
from sparsearch.search.strategies.base import RankingContext, Strategy
from sparsearch.search.strategies.network_slimming import shares, steps_to_draw
from sparsearch.search.strategies.supernet_start import open_supernet
from sparsearch.search.training.optimiser import learning_rates
from sparsearch.search.training.seeds import derive
from sparsearch.search.training.train import Observer, steps_per_epoch, train
from sparsearch.spaces.attachment.attachment import attachment_of
from sparsearch.spaces.backbone.parameters import base_of
from sparsearch.spaces.budget import Budget
from sparsearch.spaces.families.position import Feed, Position, weight_at
from sparsearch.spaces.ranking import Ranking
from sparsearch.spaces.space import Space

__all__ = ["update_magnitudes", "UpdateMagnitude"]


@torch.no_grad()
def update_magnitudes(model: nn.Module, space: Space) -> Tensor:
    """How far each head and block of neurons has moved, by the rows of the linears that feed it.

    For a head that is the sum of |s (UV + S2)| over its rows of q, k and v, as far as something is attached there
    that changes weights; where nothing is at any of them, the sum of |W|, as for DSEE's other matrices.

    Args:
        model: With the whole space attached and trained.
        space: What is attached.

    Returns:
        (candidates,) means per unit; zero for what is attached.
    """
    found = torch.zeros(len(space.candidates))
    moved: dict[str, Tensor] = {}
    ends: dict[str, int] = {}
    for i in space.removals:
        c = space.candidates[i]
        position = space.position(c.position)
        if c.position not in moved:
            moved[c.position] = _per_unit(model, space, position)
        start = ends.get(c.position, 0)
        ends[c.position] = start + c.size
        found[i] = moved[c.position][start : start + c.size].mean()
    return found


def _per_unit(model: nn.Module, space: Space, position: Position) -> Tensor:
    """(units,) sums over the rows that feed each."""
    rows = [_rows(model, space, feed, position.units) for feed in position.feeds]
    changes = [change for change, _ in rows if change is not None]
    return torch.stack(changes or [own for _, own in rows]).sum(0).cpu()


def _rows(model: nn.Module, space: Space, feed: Feed, units: int) -> tuple[Tensor | None, Tensor]:
    """Sums of |change| (None where nothing changes it) and of |W| over a linear's rows, by unit."""
    attachment = attachment_of(model)
    assert attachment is not None, "the space is attached"
    linear = next(
        p
        for p in space.positions
        if p.role == "linear" and (p.module, p.start) == (feed.module, feed.start)
    )
    weight = weight_at(linear, base_of(model).get_submodule(linear.module)).detach().float()
    changing = [
        s
        for s in attachment.slots
        if s.position.name == linear.name
        and s.kind.stage(linear) == "parallel"
        and s.changes_weight
    ]
    change = None
    if changing:
        dense = [slot.unit.dense(weight, None) for slot in changing]
        change = _by_unit(torch.stack(dense).sum(0), units)
    return change, _by_unit(weight, units)


def _by_unit(matrix: Tensor, units: int) -> Tensor:
    return matrix.abs().sum(1).view(units, -1).sum(1)


class UpdateMagnitude(Strategy):
    """Removes first what moved least in a brief training (DSEE)."""

    name: ClassVar[str] = "update-magnitude"
    train_settings: ClassVar[frozenset[str]] = frozenset(
        {"full_lr", "batch_size", "epochs", "warmup", "clip", "clip_updates", "weight_decay"}
    )

    def rank(
        self, context: RankingContext, budget: Budget, seed: int, observe: Observer
    ) -> Ranking:
        """DSEE's: all that attaches is trained, in whole epochs, until the ticket is drawn: what moved least is cut.

        The share of heads is that of neurons, over all layers or (``allocation``) in each. What is attached or masked
        comes evenly; nothing is masked while the rest trains.
        """
        space, task = context.space, context.task
        unmasked = replace(
            space, candidates=tuple(c for c in space.candidates if c.role != "mask")
        )
        supernet = open_supernet(replace(context, space=unmasked), seed, warm=False)
        try:
            steps = steps_to_draw(context.search, context.train, task)
            per_epoch = steps_per_epoch(task, context.train)
            epochs = max(1, math.ceil(steps / per_epoch))
            config = context.train.model_copy(update={"epochs": epochs})
            groups = learning_rates(context.model, config.lr, config.kind_lr)
            train(
                context.model, task, config, groups, derive(seed, "update magnitude"),
                lambda phase, done, total, score=None: observe("search", done, total),
            )  # fmt: skip
            magnitudes = update_magnitudes(context.model, unmasked)
        finally:
            supernet.close()
        places = shares(unmasked, magnitudes, context.search.allocation)
        scores = list(equal_shares(space))
        for i, j in zip(space.removals, unmasked.removals, strict=True):
            scores[i] = places[j]
        return Ranking(tuple(scores), self.name, seed, epochs * per_epoch)
