"""Aligning: frozen bases of attached units, chosen by the gradient of the task's loss."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from sparsearch.spaces.attach import attachment_of
from sparsearch.spaces.backbone import base_of
from sparsearch.spaces.positions import weight_at

__all__ = ["align"]


def align(model: nn.Module, losses: Iterable[Tensor]) -> None:
    """Choose the bases of attached, untrained units (spectral ones) by the mean gradient of their hosts' weights.

    The singular vectors of the first gradient say where a low-rank change lowers the loss, as LoRA-GA
    and GoRA start LoRA; those of the weights themselves, which ``attach`` takes, do not. Let the head learn
    first: gradients through a random head say little. Where nothing aligns, no loss is asked for.

    Args:
        model: With something attached that has not been trained, so that it is still the identity.
        losses: Losses of a few batches, computed as they are asked for.

    Example:
        >>> align(model, (model(**batch).loss for batch in loader))  # doctest: +SKIP
    """
    attachment = attachment_of(model)
    slots = [slot for slot in attachment.slots if slot.aligns] if attachment is not None else []
    if not slots:
        return
    base = base_of(model)
    hosts = {slot.position.module: base.get_submodule(slot.position.module) for slot in slots}
    weights = [host.get_parameter("weight") for host in hosts.values()]
    before = [weight.requires_grad for weight in weights]
    total = [torch.zeros_like(weight) for weight in weights]
    try:
        for weight in weights:
            weight.requires_grad_(True)
        for loss in losses:
            torch._foreach_add_(total, torch.autograd.grad(loss, weights))
    finally:
        for weight, flag in zip(weights, before, strict=True):
            weight.requires_grad_(flag)
    found = dict(zip(hosts, total, strict=True))
    for slot in slots:
        name = slot.position.module
        slot.unit.align(weight_at(slot.position, hosts[name], found[name]))
