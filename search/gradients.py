"""Gradients at the identity point, in a few passes: they choose bases of units, and rank candidates.

The head first learns what a head alone can (LP-FT, Kumar et al. 2022): gradients through a random head
say little about the task.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn

from sparsearch.search.device import frozen_cast_once
from sparsearch.search.evaluate import forward, loss_of
from sparsearch.search.prefix import enter_above
from sparsearch.search.seeds import derive
from sparsearch.search.tasks import Split, Task, batches, subset
from sparsearch.spaces.attach import attach_units, attachment_of, detach
from sparsearch.spaces.backbone import base_of, head_parameters
from sparsearch.spaces.kinds import Kind
from sparsearch.spaces.positions import Position, weight_at

__all__ = ["align", "batch_gradients", "sample_rows", "warm_head", "weight_gradients"]

_ROWS = 1024
_BATCH = 32
_HEAD_EPOCHS = 6
_HEAD_LR = 2e-2
_CACHE_BYTES = 2**30


def sample_rows(task: Task, seed: int, rows: int = _ROWS) -> Split:
    """Some rows of the training split, equal for equal seeds."""
    generator = torch.Generator().manual_seed(derive(seed, "sample"))
    return subset(task.train, torch.randperm(len(task.train), generator=generator)[:rows])


def warm_head(model: nn.Module, task: Task, rows: Split, seed: int, precision: str) -> None:
    """Train the task head alone, over the backbone as it is; nothing may be attached."""
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(derive(seed, "head batches"))
    attach_units(model, [])
    optimizer = torch.optim.AdamW(
        [p for _, p in head_parameters(model)], lr=_HEAD_LR, weight_decay=0.0
    )
    model.eval()
    try:
        with frozen_cast_once(model, precision):
            small = replace(task, train=rows, validation=subset(rows, torch.arange(1)))
            runner, small = enter_above(model, small, precision, _CACHE_BYTES)
            for _ in range(_HEAD_EPOCHS):
                for batch in batches(small.train, _BATCH, device, generator):
                    logits = forward(runner, batch, precision)
                    loss = loss_of(logits, batch["labels"], task.type)
                    loss.backward()  # type: ignore[no-untyped-call]
                    optimizer.step()
                    optimizer.zero_grad()
    finally:
        detach(model)


def batch_gradients(
    model: nn.Module,
    task: Task,
    rows: Split,
    parameters: Sequence[Tensor],
    precision: str,
    batch_size: int = _BATCH,
) -> Iterator[tuple[Tensor, ...]]:
    """Gradients of the mean loss of each batch, without dropout; zero where none flows."""
    model.eval()
    for batch in batches(rows, batch_size, parameters[0].device):
        loss = loss_of(forward(model, batch, precision), batch["labels"], task.type)
        found = torch.autograd.grad(loss, parameters, allow_unused=True)
        yield tuple(
            torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)
        )


def weight_gradients(
    model: nn.Module,
    task: Task,
    units: Iterable[tuple[Position, Kind]],
    seed: int,
    precision: str,
) -> dict[str, Tensor]:
    """Mean gradient of the backbone's weight wherever a kind aligns with it: position -> (out, in).

    Nothing may be attached yet, and the head is warm. Where no kind aligns, does nothing.
    """
    assert attachment_of(model) is None, "gradients are taken at the backbone as it is"
    positions = list(dict.fromkeys(position for position, kind in units if kind.aligns))
    if not positions:
        return {}
    rows = sample_rows(task, seed)
    base = base_of(model)
    hosts = {name: base.get_submodule(name) for name in dict.fromkeys(p.module for p in positions)}
    weights = [host.get_parameter("weight") for host in hosts.values()]
    total = [torch.zeros_like(w) for w in weights]
    with _requires_grad(weights):
        for gradients in batch_gradients(model, task, rows, weights, precision):
            torch._foreach_add_(total, gradients)
    found = dict(zip(hosts, total, strict=True))
    return {p.name: weight_at(p, hosts[p.module], found[p.module]) for p in positions}


@contextmanager
def _requires_grad(parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    before = [p.requires_grad for p in parameters]
    try:
        for parameter in parameters:
            parameter.requires_grad_(True)
        yield
    finally:
        for parameter, flag in zip(parameters, before, strict=True):
            parameter.requires_grad_(flag)


def align(model: nn.Module, gradients: Mapping[str, Tensor]) -> None:
    """Choose the bases of attached units by the gradient at their positions (as LoRA-GA and GoRA start LoRA)."""
    attachment = attachment_of(model)
    assert attachment is not None, "nothing is attached"
    for slot in attachment.slots:
        if slot.position.name in gradients and slot.aligns:
            slot.unit.align(gradients[slot.position.name])
