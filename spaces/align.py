"""Aligning: frozen parts of attached units, chosen by the gradient of the task's loss."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

import torch
from torch import Tensor, nn

from sparsearch.spaces.attachment import attachment_of
from sparsearch.spaces.backbone import base_of
from sparsearch.spaces.kinds import Basis, Kind
from sparsearch.spaces.positions import Position, weight_at

__all__ = ["Aligning", "Bases", "align", "aligning_at", "find_bases", "take_bases"]

Aligning = Collection[tuple[Position, Kind]]
"""Kinds whose units have frozen parts that the gradient chooses, and where."""

Bases = Mapping[tuple[str, str], Basis]
"""Names of position and kind -> frozen parts."""


def align(model: nn.Module, losses: Iterable[Tensor]) -> None:
    """Choose the frozen parts of attached, untrained units by the mean gradient of their hosts' weights.

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
    slots = attachment.slots if attachment is not None else []
    aligning = [(slot.position, slot.kind) for slot in slots if slot.kind.aligns]
    take_bases(model, find_bases(model, aligning, losses))


def aligning_at(kinds: Iterable[Kind], positions: Iterable[Position]) -> Aligning:
    """The kinds that align, wherever they may go."""
    aligning = [kind for kind in kinds if kind.aligns]
    return [(p, kind) for p in positions for kind in aligning if kind.accepts(p)]


def find_bases(model: nn.Module, aligning: Aligning, losses: Iterable[Tensor]) -> Bases:
    """What kinds take from the mean gradient at some positions.

    Args:
        model: The identity point: nothing attached, or nothing of it trained.
        aligning: The kinds and positions.
        losses: Losses of a few batches, computed as they are asked for; none is if nothing aligns.
    """
    if not aligning:
        return {}
    base = base_of(model)
    hosts = {p.module: base.get_submodule(p.module) for p, _ in aligning}
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
    gradients = dict(zip(hosts, total, strict=True))
    return {
        (p.name, kind.name): kind.basis(p, weight_at(p, hosts[p.module], gradients[p.module]))
        for p, kind in aligning
    }


def take_bases(model: nn.Module, bases: Bases) -> None:
    """Give attached, untrained units the frozen parts that were found for them."""
    attachment = attachment_of(model)
    for slot in attachment.slots if attachment is not None else []:
        basis = bases.get((slot.position.name, slot.kind.name))
        if basis is not None:
            slot.unit.align(*basis)
