"""Removes heads and neurons from a model's weights."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from sparsearch.errors import StructureError
from sparsearch.spaces.attachment.attachment import attachment_of
from sparsearch.spaces.backbone.parameters import base_of, positions_of
from sparsearch.spaces.backbone.state import check_state
from sparsearch.spaces.families.position import Position, find
from sparsearch.spaces.families.registry import family_of
from sparsearch.spaces.kinds.prunable.neurons import LEAST_NEURONS

__all__ = [
    "check_removal",
    "remove_units",
    "remove_all",
]

M = TypeVar("M", bound=nn.Module)


def remove_units(model: M, removed: Mapping[str, Sequence[int]]) -> M:
    """Cut heads and neurons out of a model's weights, in place.

    The model then computes what it computed with these units' outputs set to 0, by smaller products.
    Its config stays: to load the weights again, build the model anew (on any device, the meta device
    too), cut the same units, and load. New parameters take the place of the old ones, with their
    type, device and trainable flag; an optimizer of the old ones must be made anew.

    Args:
        model: With or without a head; nothing may be attached to it.
        removed: Canonical name of a place that can be cut (``layers.3.attn.heads``,
            ``layers.0.ffn.neurons``) -> indices of the units that go, in the model as it is given.
            With grouped queries a unit is a key head and the query heads that share it.

    Returns:
        The same model.

    Raises:
        StructureError: If something is attached, a position is unknown or cannot be cut, an index is
            outside or named twice, or too little is left: one head, ``LEAST_NEURONS``.
            The model is then untouched.
        ModelStateError: If the model is in a state where its weights cannot be cut, see ``model_state``.

    Example:
        >>> model = cut_units(model, {"layers.0.attn.heads": [1, 3]})  # doctest: +SKIP
    """
    check_state(model, allow={"attached", "meta"})
    if attachment_of(model) is not None:
        raise StructureError(
            "nothing can be cut under an attached structure", "detach(model) first"
        )
    remove_all(model, check_removal(model, removed))
    return model


def remove_all(model: nn.Module, kept: Iterable[tuple[Position, Sequence[int]]]) -> None:
    """Keep these units at each position, all the others elsewhere."""
    base = base_of(model)
    for position, units in kept:
        _cut(base, position, units)
        if position.role == "heads":
            _count_heads(base, position, units)


def check_removal(
    model: nn.Module, removed: Mapping[str, Sequence[int]]
) -> list[tuple[Position, list[int]]]:
    """The units that stay at each position, after all checks."""
    positions = positions_of(model)
    return [(p, _kept(p, removed[p.name])) for p in (find(positions, name) for name in removed)]


def _kept(position: Position, removed: Sequence[int]) -> list[int]:
    """The units that stay at one position."""
    name, units = position.name, position.units
    if position.role not in ("heads", "neurons"):
        raise StructureError(
            f"{name} cannot be cut, it is a {position.role}",
            "name a position that ends in .heads or .neurons",
        )
    gone = set(removed)
    outside = sorted(gone - set(range(units)))
    if outside:
        raise StructureError(
            f"{name} has no unit {outside[0]}", f"its {units} units are counted from 0"
        )
    if len(gone) < len(removed):
        twice = next(u for u in removed if list(removed).count(u) > 1)
        raise StructureError(f"{name}: unit {twice} is removed twice", "name each unit once")
    least = 1 if position.role == "heads" else min(LEAST_NEURONS, units)
    if units - len(gone) < least:
        raise StructureError(
            f"{name}: removing {len(gone)} of {units} units leaves less than {least}",
            f"remove at most {units - least}",
        )
    return [unit for unit in range(units) if unit not in gone]


def _cut(base: nn.Module, position: Position, kept: Sequence[int]) -> None:
    """Keep the units' rows of what feeds them (parts of one fused linear together) and columns of the reader."""
    rows: dict[str, list[int]] = {}
    for feed in position.feeds:
        features = _of_units(kept, feed.features, position.units)
        rows.setdefault(feed.module, []).extend(features)
    for path, features in rows.items():
        _keep_outputs(base.get_submodule(path), sorted(features))
    inputs = range(position.in_features)
    _keep_inputs(base.get_submodule(position.module), _of_units(kept, inputs, position.units))


def _of_units(kept: Sequence[int], features: Sequence[int], units: int) -> list[int]:
    """Those of features, which ``units`` share out in equal parts, that some of the units have."""
    width = len(features) // units
    return [feature for unit in kept for feature in features[unit * width : (unit + 1) * width]]


def _keep_outputs(linear: nn.Module, features: Sequence[int]) -> None:
    fused = isinstance(linear, Conv1D)
    _select(linear, "weight", features, 1 if fused else 0)
    if linear.bias is not None:
        _select(linear, "bias", features, 0)
    setattr(linear, "nf" if fused else "out_features", len(features))


def _keep_inputs(linear: nn.Module, features: Sequence[int]) -> None:
    fused = isinstance(linear, Conv1D)
    _select(linear, "weight", features, 0 if fused else 1)
    setattr(linear, "nx" if fused else "in_features", len(features))


def _select(linear: nn.Module, name: str, features: Sequence[int], dim: int) -> None:
    old = linear.get_parameter(name)
    index = torch.tensor(features, device=old.device)
    new = old.detach().index_select(dim, index)
    linear.register_parameter(name, nn.Parameter(new, requires_grad=old.requires_grad))


def _count_heads(base: nn.Module, position: Position, kept: Sequence[int]) -> None:
    """What the attention knows about its heads beside the weights."""
    family = family_of(base.config.model_type)  # type: ignore[union-attr,arg-type]
    attention = base.get_submodule(position.feeds[0].module.rpartition(".")[0])
    if family.head_counters is not None:
        heads, features = family.head_counters
        setattr(attention, heads, len(kept))
        setattr(attention, features, len(kept) * (position.in_features // position.units))
    if family.keep_heads is not None:
        family.keep_heads(attention, kept)
