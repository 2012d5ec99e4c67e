"""Where searches and probes start: a supernet over a warm head, and a probe as the start of alpha."""

from __future__ import annotations

import torch
from torch import Tensor

from sparsearch.search.bilevel.gradient_probe import probe
from sparsearch.search.bilevel.supernet import Supernet
from sparsearch.search.strategies.base import RankingContext
from sparsearch.search.strategies.optimal_brain_surgeon import pruning_saliency, removal_saliency
from sparsearch.search.training.seeds import seed_everything
from sparsearch.search.training.warm_start import new_head
from sparsearch.spaces.calibration.calibrate import take_bases
from sparsearch.spaces.space import Space

__all__ = ["log_density", "open_supernet", "probed", "standardised", "start_alpha"]


def open_supernet(context: RankingContext, seed: int, warm: bool) -> Supernet:
    """The problem's space, attached and aligned, perhaps over a warm head; whoever opens it closes it."""
    model, space = context.model, context.space
    aligning = any(kind.aligns for kind in space.kinds.values())
    new_head(model, context.task, seed, "head")
    if warm or context.train.head_first or context.train.steps_before_cut or aligning:
        start = context.start()
        start.load_head(model)
    seed_everything(seed, "supernet")
    supernet = Supernet(model, space, context.task.type, context.train.precision)
    if aligning:
        take_bases(model, start.bases)
    return supernet


def probed(context: RankingContext, supernet: Supernet, seed: int) -> Tensor:
    """The gradient probe's scores; what compensates when it is cut has the surgeon's prices instead."""
    space, tokens = context.space, context.task.max_length
    scores = probe(supernet, context.task, context.search.probe, context.train, seed)
    if any(space.kinds[space.candidates[i].kind].aligns for i in space.removals):
        prices = removal_saliency(context.model, space, context.start().bases, tokens)
        for i, price in prices.items():
            scores[i] = price * space.candidates[i].inference_flops(tokens)
    if any(kind.aligns for kind in space.kinds.values()) and space.bands:
        for i, price in pruning_saliency(context.model, space, context.start().bases).items():
            scores[i] = -price * space.candidates[i].pruned_weights
    return scores


def start_alpha(space: Space, scores: Tensor, tokens: int) -> Tensor:
    """A probe as a start: log densities, by parameters for what is attached, by what it saves for what is removed.

    What is cut saves FLOPs, what is pruned weights.
    """
    cuts = torch.tensor([bool(c.which) for c in space.candidates])
    pruned = torch.tensor([c.pruned_weights for c in space.candidates])
    params = torch.tensor([c.params for c in space.candidates])
    flops = torch.tensor([-c.inference_flops(tokens) for c in space.candidates])
    attached = ~cuts & (pruned == 0)
    alpha = torch.zeros(len(scores))
    if attached.any():
        alpha[attached] = log_density(scores[attached], params[attached])
    for removed, saving in ((cuts, flops), (pruned > 0, pruned)):
        if removed.any():
            alpha[removed] = -log_density(-scores[removed], saving[removed])
    return alpha


def log_density(scores: Tensor, cost: Tensor) -> Tensor:
    """Logarithm of score per parameter, mean 0 and standard deviation 1: a probe as a start of alpha.

    Zeros where nothing tells candidates apart: all scores are zero, or there is one alone.
    """
    density = scores.double() / cost
    if len(density) < 2 or not density.max() > 0:
        return torch.zeros(len(density))
    return standardised(torch.log(density.clamp_min(density.max() * 1e-6)))


def standardised(scores: Tensor) -> Tensor:
    """Scores with mean 0 and standard deviation 1; zeros where there is one alone.

    >>> standardised(torch.tensor([0.0, 1.0, 2.0]))
    tensor([-1.,  0.,  1.])
    """
    if len(scores) < 2:
        return torch.zeros(len(scores))
    return ((scores - scores.mean()) / scores.std().clamp_min(1e-6)).float()
