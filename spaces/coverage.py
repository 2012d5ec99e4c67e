"""How much of a backbone positions reach, and what none of them does."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from sparsearch.spaces.backbone.parameters import (
    backbone_modules,
    base_of,
    family_name,
    positions_of,
)
from sparsearch.spaces.backbone.quantised.weights import full_count
from sparsearch.spaces.families.generic import opaque_modules
from sparsearch.spaces.families.position import MATRICES, Position
from sparsearch.spaces.families.registry import FAMILIES, family_of
from sparsearch.spaces.space import Space

if TYPE_CHECKING:
    from torch import nn

__all__ = ["Reach", "Unreached", "describe_unreached", "find_unreached", "reach_of"]

What = Literal["linear", "norm", "convolution", "expert", "tensor"]
"""A linear, a norm, a convolution, experts kept in tensors of their own, or other weights that are no linear."""

_OWN_WEIGHTS = (*MATRICES, "norm")

_LAYER = re.compile(r"^(.*?layers\.\d+)\.")


@dataclass(frozen=True)
class Reach:
    """What one kind reaches at positions of one role.

    Attributes:
        kind: Name of the kind.
        role: Of the positions: ``linear``, ``expert``, ``router``, ``norm``, ``block``, ``heads``, ``neurons``.
        positions: How many.
        layers: In how many layers they are.
        of_layers: Layers of the backbone.
        weights: Weights of the linears and norms that they change; a block changes those in it, and a place that can
            be cut those around it.
        share: The same as a share of all parameters of the backbone, embeddings among them.
    """

    kind: str
    role: str
    positions: int
    layers: int
    of_layers: int
    weights: int
    share: float


@dataclass(frozen=True)
class Unreached:
    """A module of a backbone whose weights no position reaches, or reaches in part.

    Attributes:
        module: Path under the base model.
        what: What it is.
        weights: How many are not reached.
        reason: Why, in words.
    """

    module: str
    what: What
    weights: int
    reason: str


def reach_of(space: Space) -> tuple[Reach, ...]:
    """What each kind of a space reaches, role by role, in the space's order."""
    layers = {layer for p in space.positions if (layer := _layer(p))}
    at: dict[tuple[str, str], dict[str, Position]] = {}
    named = {p.name: p for p in space.positions}
    for c in space.candidates:
        position = named[c.position]
        at.setdefault((c.kind, position.role), {})[position.name] = position
    found = []
    for (kind, role), places in at.items():
        changed = {
            p.name: p for place in places.values() for p in _changed(place, space.positions)
        }
        weights = sum(map(_weights, changed.values()))
        reached = {layer for p in places.values() if (layer := _layer(p))}
        counts = len(places), len(reached), len(layers), weights
        found.append(Reach(kind, role, *counts, weights / space.backbone_params))
    return tuple(found)


def find_unreached(model: nn.Module) -> tuple[Unreached, ...]:
    """Every linear, norm and expert of a backbone that no position reaches, in the backbone's order.

    Args:
        model: With or without a head; the meta device will do.
    """
    positions = positions_of(model)
    reached: dict[str, int] = {}
    for p in positions:
        if p.role in _OWN_WEIGHTS:
            reached[p.module] = reached.get(p.module, 0) + _weights(p)
    feeds = {feed.module for p in positions for feed in p.feeds}
    opaque = opaque_modules(base_of(model))
    family = family_name(model)
    found = []
    for path, module in backbone_modules(model):
        if own := _own(path, module):
            what, weights = own
            left = weights - reached.get(path, 0)
            if left > 0:
                found.append(
                    Unreached(path, what, left, _reason(path, what, family, feeds, opaque))
                )
    return tuple(found)


def describe_unreached(found: Sequence[Unreached], backbone_params: int) -> tuple[str, ...]:
    """What is not reached in words, equal places of several layers as one."""
    groups: dict[tuple[str, str, str], list[int]] = {}
    for u in found:
        groups.setdefault((re.sub(r"\b\d+\b", "*", u.module), u.what, u.reason), []).append(
            u.weights
        )
    return tuple(
        f"{path or 'the model itself'} ({len(weights)} {what}{'s' if len(weights) > 1 else ''}, "
        f"{100 * sum(weights) / backbone_params:.2g}% of the backbone): {reason}"
        for (path, what, reason), weights in groups.items()
    )


def _layer(position: Position) -> str:
    """The layer of a position with its stack, "" outside the layers."""
    found = _LAYER.match(position.name)
    return found[1] if found else ""


def _changed(place: Position, positions: Sequence[Position]) -> Iterator[Position]:
    """The matrices and norms whose weights a position stands for."""
    if place.role in _OWN_WEIGHTS:
        yield place
        return
    around = {(feed.module, feed.start) for feed in place.feeds} | {(place.module, 0)}
    for p in positions:
        inside = place.role == "block" and p.name.startswith(f"{place.name}.")
        if p.role in MATRICES and (inside or (place.feeds and (p.module, p.start) in around)):
            yield p


def _weights(position: Position) -> int:
    """Weights of a matrix or norm at a position, its bias among them."""
    inputs = position.in_features if position.role in MATRICES else 1
    return position.out_features * (inputs + position.has_bias)


def _own(path: str, module: nn.Module) -> tuple[What, int] | None:
    """What a module is for us, and its weights; None for embeddings, and for what only holds others."""
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    own = dict(module.named_parameters(recurse=False))
    weight = own.get("weight")
    if isinstance(module, Conv1D) or (weight is not None and hasattr(module, "in_features")):
        return "linear", sum(map(full_count, own.values()))
    if weight is not None and weight.ndim == 1:
        return "norm", sum(p.numel() for p in own.values())
    count = sum(p.numel() for p in own.values())
    if isinstance(module, nn.Conv1d | nn.Conv2d):
        return "convolution", count
    if count and not isinstance(module, nn.Embedding):
        return ("expert" if "expert" in path else "tensor"), count
    return None


def _reason(
    path: str, what: What, family: str, feeds: Collection[str], opaque: Collection[str]
) -> str:
    """Why no position reaches a module."""
    for module, why in family_of(family).aside.items():
        if f"{path}.".startswith(f"{module}."):
            return why
    if "pooler" in path.split("."):
        return "the pooler, which is part of the head where the checkpoint lacks it"
    if any(f"{path}.".startswith(f"{closed}.") for closed in opaque):
        return "torch's own attention or layer reads its weights and calls no module, so nothing can be attached"
    if path in feeds:
        return "it feeds heads that can be cut, and no kind goes to it alone"
    if what == "convolution":
        return "a convolution, and kinds go to linears and norms"
    if what in ("expert", "tensor"):
        return "weights in tensors of their own, and kinds go to linears and norms"
    if any(path.startswith(f"{stack.layers}.") for stack in family_of(family).stacks):
        return f"a part of a layer that the table of {family} does not name"
    if family not in FAMILIES:
        return "its type says neither linear nor norm whose form is known"
    return f"outside the layers, where the table of {family} does not name it"
