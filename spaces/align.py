"""Aligning: frozen directions of attached units, chosen by the gradient of the task's loss."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from sparsearch.spaces.attach import attachment_of
from sparsearch.spaces.backbone import base_of
from sparsearch.spaces.kinds import Kind, leading_directions
from sparsearch.spaces.positions import Position, weight_at

__all__ = ["Directions", "align", "direction_counts", "find_directions", "take_directions"]

Directions = Mapping[str, tuple[Tensor, Tensor]]
"""Name of a position -> singular vectors of its gradient, left (out, k) and right (k, in), the leading ones first."""


def align(model: nn.Module, losses: Iterable[Tensor]) -> None:
    """Choose the directions of attached, untrained units (spectral ones) by the mean gradient of their hosts' weights.

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
    counts = {slot.position: slot.directions for slot in slots if slot.directions}
    take_directions(model, find_directions(model, counts, losses))


def direction_counts(kinds: Iterable[Kind], positions: Iterable[Position]) -> dict[Position, int]:
    """How many directions units of these kinds may ask for, at each position where they ask for any."""
    kinds = tuple(kinds)
    counts = {
        p: max((kind.directions(p) for kind in kinds if kind.accepts(p)), default=0)
        for p in positions
    }
    return {position: count for position, count in counts.items() if count}


def find_directions(
    model: nn.Module, counts: Mapping[Position, int], losses: Iterable[Tensor]
) -> Directions:
    """The leading singular vectors of the mean gradient at some positions.

    Args:
        model: The identity point: nothing attached, or nothing of it trained.
        counts: Position -> number of directions wanted.
        losses: Losses of a few batches, computed as they are asked for; none is if no position is given.
    """
    if not counts:
        return {}
    base = base_of(model)
    hosts = {p.module: base.get_submodule(p.module) for p in counts}
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
        p.name: leading_directions(weight_at(p, hosts[p.module], gradients[p.module]), count)
        for p, count in counts.items()
    }


def take_directions(model: nn.Module, directions: Directions) -> None:
    """Give attached, untrained units the directions that were found for their positions."""
    attachment = attachment_of(model)
    for slot in attachment.slots if attachment is not None else []:
        if slot.directions:
            slot.unit.align(*directions[slot.position.name])
