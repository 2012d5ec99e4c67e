"""Gradients at the identity point, in a few passes: they choose the bases of units, and rank candidates.

The head first learns what a head alone can (LP-FT, Kumar et al. 2022): gradients through a random head
say little about the task. Where a gradient says too little, a brief fine-tuning of the weights says more.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from sparsearch.config.train import START_BATCH, TrainConfig
from sparsearch.search.tasks.task import Split, Task, batches, endless, subset
from sparsearch.search.training.device import frozen_cast_once
from sparsearch.search.training.optimiser import NanGuard, linear_schedule
from sparsearch.search.training.prefix import enter_above
from sparsearch.search.training.seeds import derive
from sparsearch.search.training.train import Observer, silent
from sparsearch.spaces.attachment.attach import attach_modules, detach
from sparsearch.spaces.backbone.parameters import (
    base_of,
    head_parameters,
    host_weight,
    replaced_weights,
)

__all__ = [
    "batch_gradients",
    "brief_changes",
    "sample_losses",
    "sample_rows",
    "warm_head",
]

_HEAD_EPOCHS = 6
_HEAD_LR = 2e-2
_CACHE_BYTES = 2**30
_BRIEF_LR = 3e-4
_BRIEF_HEAD_LR = 1e-3
_BRIEF_WARMUP = 0.1
_BRIEF_CLIP = 1.0


def sample_rows(task: Task, seed: int, rows: int) -> Split:
    """Some rows of the training split, equal for equal seeds."""
    generator = torch.Generator().manual_seed(derive(seed, "sample"))
    return subset(task.train, torch.randperm(len(task.train), generator=generator)[:rows])


def warm_head(model: nn.Module, task: Task, rows: Split, seed: int, precision: str) -> None:
    """Train the task head alone, if there is one, over the backbone as it is; nothing may be attached."""
    head = [p for _, p in head_parameters(model)]
    if not head:
        return
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(derive(seed, "head batches"))
    attach_modules(model, [])
    optimizer = torch.optim.AdamW(head, lr=_HEAD_LR, weight_decay=0.0)
    model.eval()
    try:
        with frozen_cast_once(model, precision):
            small = replace(task, train=rows, validation=subset(rows, torch.arange(1)))
            runner, small = enter_above(model, small, precision, _CACHE_BYTES)
            for _ in range(_HEAD_EPOCHS):
                for batch in batches(small.train, START_BATCH, device, generator):
                    loss = task.behaviour.loss(runner, batch, precision)
                    loss.backward()  # type: ignore[no-untyped-call]
                    optimizer.step()
                    optimizer.zero_grad()
    finally:
        detach(model)


def brief_changes(
    model: nn.Module,
    task: Task,
    hosts: Sequence[str],
    config: TrainConfig,
    seed: int,
    observe: Observer = silent,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """How some weights change in a brief fine-tuning of them and the head, without dropout, and the head then.

    Its leading singular vectors are where fine-tuning goes; those of the first gradient only where it sets out to.

    Args:
        model: Over a warm head, nothing attached; as it was when this returns.
        task: Its training split is used, in batches of 32.
        hosts: Paths of the modules in the backbone.
        config: Precision, and ``start_steps`` of AdamW, its rate rising and falling.
        seed: Of the order of the rows.
        observe: Told of every step, in the phase ``directions``.

    Returns:
        Path -> change of the module's weight, in the weight's form; name -> value of the head's parameters.

    Raises:
        TrainingDiverged: If a loss or a gradient is NaN or infinite.
    """
    steps, precision = config.start_steps, config.precision
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(derive(seed, "brief batches"))
    watch = NanGuard("brief fine-tuning", "set train.start_steps: 0")
    model.eval()
    with _copies_that_train(model, hosts) as (copies, own, head):
        trained = [*copies.values(), *head]
        rates = [
            {"params": list(copies.values()), "lr": _BRIEF_LR},
            {"params": head, "lr": _BRIEF_HEAD_LR},
        ]
        optimizer = torch.optim.AdamW(rates, weight_decay=0.0, fused=True)
        schedule = linear_schedule(optimizer, steps, _BRIEF_WARMUP)
        found = endless(task.train, START_BATCH, device, generator)
        with frozen_cast_once(model, precision):
            for step, batch in zip(range(1, steps + 1), found, strict=False):
                loss = task.behaviour.loss(model, batch, precision)
                loss.backward()  # type: ignore[no-untyped-call]
                norm = nn.utils.clip_grad_norm_(trained, _BRIEF_CLIP)
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
                watch.see(step, loss, norm)
                observe("directions", step, steps)
        watch.look(steps)
        changes = {path: copy.detach() - own[path].detach() for path, copy in copies.items()}
        return changes, {n: p.detach().clone() for n, p in head_parameters(model)}


@contextlib.contextmanager
def _copies_that_train(
    model: nn.Module, hosts: Sequence[str]
) -> Iterator[tuple[dict[str, nn.Parameter], dict[str, nn.Parameter], list[nn.Parameter]]]:
    """Trainable copies in the place of some weights, and a head that trains: (copies, the weights, head).

    Nothing is written to the weights, which other processes may share; they and the head's values come back.
    """
    own = {path: host_weight(base_of(model), path) for path in hosts}
    head = [p for _, p in head_parameters(model)]
    warm = [p.detach().clone() for p in head]
    attach_modules(model, [])
    try:
        copies = {path: nn.Parameter(weight.detach().clone()) for path, weight in own.items()}
        with replaced_weights(model, copies):
            yield copies, own, head
    finally:
        detach(model)
        with torch.no_grad():
            for parameter, value in zip(head, warm, strict=True):
                parameter.copy_(value)
                parameter.grad = None


def batch_gradients(
    model: nn.Module,
    task: Task,
    rows: Split,
    parameters: Sequence[Tensor],
    precision: str,
    batch_size: int = START_BATCH,
) -> Iterator[tuple[Tensor, ...]]:
    """Gradients of the mean loss of each batch, without dropout; zero where none flows."""
    for loss in sample_losses(model, task, rows, precision, batch_size):
        found = torch.autograd.grad(loss, parameters, allow_unused=True)
        yield tuple(
            torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)
        )


def sample_losses(
    model: nn.Module, task: Task, rows: Split, precision: str, batch_size: int = START_BATCH
) -> Iterator[Tensor]:
    """The mean loss of each batch of some rows, without dropout."""
    model.eval()
    device = next(model.parameters()).device
    with frozen_cast_once(model, precision):
        for batch in batches(rows, batch_size, device):
            yield task.behaviour.loss(model, batch, precision)
