"""Gradient probes: rankings from a few passes at the identity point, where no unit changes the model yet."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext

import torch
from torch import Tensor

from sparsearch.config.study import ProbeConfig, TrainConfig
from sparsearch.search.bilevel.supernet import Supernet, candidate_parts
from sparsearch.search.tasks.task import Split, Task
from sparsearch.search.training.gradients import batch_gradients, sample_rows
from sparsearch.search.training.optimiser import learning_rates, rate_of_each
from sparsearch.spaces.kinds.rounding import trained_tensors

__all__ = ["probe"]

_WEIGHT_STEPS = 20


def probe(
    supernet: Supernet, task: Task, config: ProbeConfig, train: TrainConfig, seed: int
) -> Tensor:
    """Score every candidate by the gradient of its parameters, all of them attached and open.

    ``l1``: sum |g|, what one step of Adam would gain to first order, but for the rate.
    ``step``: the same times the kind's learning rate. ``l2``: sum g^2, what a gradient step would
    gain (GoRA, PAGE). ``fisher``: mean over rows of g^2 (FISH mask; its diagonal). ``weight``:
    sum |g w| after a few training steps, since w = 0 says nothing at the identity (SNIP, Taylor).
    What may be cut or masked is scored by minus |dL/dz| of its gate: of the loss of a batch of 32 rows, mean over the
    batches. Michel et al. (2019) take single rows, as ``fisher`` does here; within a batch rows of opposite signs
    cancel out. ``weight`` takes it after its training steps, the others at the identity.

    Args:
        supernet: With a warm head and untrained units; ``weight`` trains the units.
        task: Its training split is sampled.
        config: Which score, and on how many rows.
        train: Learning rates and precision.
        seed: Of the sample.

    Returns:
        (candidates,) scores on the CPU; non-negative for what is attached, non-positive for what is cut.
    """
    parameters = list(supernet.attachment.units.parameters())
    cuts = supernet.removals
    rows = sample_rows(task, seed, config.rows)
    if config.score == "weight":
        _train_briefly(supernet, task, rows, train)
    size = 1 if config.score == "fisher" else 32
    z = torch.where(cuts, 0.0, 1.0).to(next(supernet.model.parameters()).device)
    watched = [*parameters, z.requires_grad_()] if cuts.any() else parameters
    total = [torch.zeros_like(p) for p in parameters]
    importance, batches = torch.zeros_like(z), 0
    with supernet.attachment.gated(z) if cuts.any() else nullcontext():
        for found in batch_gradients(supernet.model, task, rows, watched, train.precision, size):
            own = found[: len(parameters)]
            if own:
                torch._foreach_add_(total, torch._foreach_pow(own, 2) if size == 1 else own)
            importance += found[-1].abs() if cuts.any() else 0.0
            batches += 1
    worth = _worth(config.score, total, parameters, rate_of_each(supernet.model, train))
    scores = torch.cat(list(_per_candidate(supernet, dict(zip(parameters, worth, strict=True)))))
    return torch.where(cuts, -importance.detach().cpu() / batches, scores)


def _worth(
    score: str,
    total: Sequence[Tensor],
    parameters: Sequence[Tensor],
    rates: Mapping[Tensor, float],
) -> list[Tensor]:
    """What each single parameter is worth."""
    formula: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
        "l1": lambda g, w: g.abs(),
        "step": lambda g, w: g.abs() * rates[w],
        "l2": lambda g, w: g.square(),
        "fisher": lambda g, w: g,
        "weight": lambda g, w: (g * w.detach()).abs(),
    }
    return [formula[score](g, w) for g, w in zip(total, parameters, strict=True)]


def _per_candidate(supernet: Supernet, worth: Mapping[Tensor, Tensor]) -> Iterator[Tensor]:
    """Sums over the parameters of each candidate, unit by unit."""
    attachment = supernet.attachment
    for slot, gates in zip(attachment.slots, attachment.gate_sizes, strict=True):
        sums = torch.zeros(gates)
        for name, parameter in trained_tensors(slot.unit):
            value = worth[parameter].detach().cpu()
            parts = candidate_parts(slot.unit, name, value, gates)
            among = 1 if name in slot.unit.shared else gates
            sums += torch.stack([part.sum() for part in parts]) / among
        yield sums


def _train_briefly(supernet: Supernet, task: Task, rows: Split, train: TrainConfig) -> None:
    groups = learning_rates(supernet.model, train.lr, train.kind_lr)
    parameters = [p for group in groups for p in group["params"]]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.0)
    found = batch_gradients(supernet.model, task, rows, parameters, train.precision)
    for _, gradients in zip(range(_WEIGHT_STEPS), found, strict=False):
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        optimizer.step()
        optimizer.zero_grad()
