"""How many of a model's weights are zero."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from sparsearch.spaces.attachment.attachment import attachment_of
from sparsearch.spaces.backbone.parameters import base_of, positions_of
from sparsearch.spaces.backbone.state import check_state
from sparsearch.spaces.families.position import PRUNABLE, weight_at

__all__ = [
    "count_zeros",
    "measured_sparsity",
    "weight_sparsity",
]


def measured_sparsity(model: nn.Module) -> dict[str, float]:
    """Share of zeros in the weights of each linear position, by its name; attached masks count.

    Example:
        >>> measured_sparsity(merge(attach(model, "exported/")))  # doctest: +SKIP
        {'layers.0.attn.q': 0.9, ...}
    """
    return {name: zeros / count for name, zeros, count in _zeros(model)}


def weight_sparsity(model: nn.Module) -> float:
    """Share of the weights of all linears that are zero; attached masks count."""
    zeros, weights = count_zeros(model)
    return zeros / weights


def count_zeros(model: nn.Module) -> tuple[int, int]:
    """Zeros among the weights of all linears, and those weights; attached masks count."""
    _, zeros, weights = zip(*_zeros(model), strict=True)
    return sum(zeros), sum(weights)


@torch.no_grad()
def _zeros(model: nn.Module) -> Iterator[tuple[str, int, int]]:
    """Name, zeros and weights of each linear position."""
    check_state(model, allow={"attached"})
    attachment = attachment_of(model)
    masked = {
        slot.position.name: host.used(slot.position)
        for host in (attachment.masked if attachment is not None else ())
        for slot in host.masks
    }
    base = base_of(model)
    for position in positions_of(model):
        if position.role in PRUNABLE:
            own = weight_at(position, base.get_submodule(position.module))
            weight = masked.get(position.name, own)
            yield position.name, int((weight == 0).sum()), weight.numel()
