"""Slimming: heads and neurons are cut out of the weights; what is left is a smaller model of the same class.

``slim`` does all that makes a trained model smaller, ``cut_units`` the cutting alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate
from typing import TypeVar

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from sparsearch.errors import StructureError
from sparsearch.spaces.attach import attach, detach, drop
from sparsearch.spaces.attachment import attachment_of
from sparsearch.spaces.backbone import base_of, positions_of
from sparsearch.spaces.kinds.neurons import LEAST_NEURONS
from sparsearch.spaces.merge import fold, merge
from sparsearch.spaces.model_state import check_state
from sparsearch.spaces.positions import Position, find
from sparsearch.spaces.slots import Slot
from sparsearch.spaces.structure import Structure
from sparsearch.spaces.units.removal import RemovalUnit

__all__ = ["cut_units", "slim", "units_cut"]

_COUNTERS: Mapping[str, tuple[str, str] | None] = {
    "bert": ("num_attention_heads", "all_head_size"),
    "deberta-v2": ("num_attention_heads", "all_head_size"),
    "distilbert": ("n_heads", "dim"),
    "gpt2": ("num_heads", "split_size"),
    "llama": None,
    "opt": ("num_heads", "embed_dim"),
    "roberta": ("num_attention_heads", "all_head_size"),
    "t5": ("n_heads", "inner_dim"),
}
"""Attributes of a family's attention: its heads, and their features together. None: it counts neither."""

M = TypeVar("M", bound=nn.Module)


def slim(model: M, structure: Structure, *, attached: bool = True) -> M:
    """Make a trained model as small as its structure says: merge what merges, then cut what is removed.

    Merging comes first, so that what was trained on a head that goes is dropped with it; then what stands in for
    cut units goes into the weights of what reads them. Adapters stay attached and run on the slim model.

    Args:
        model: A model with the structure attached; where ``merge`` has run before, with what it left.
        structure: What is attached.
        attached: False for a plain model and a structure that only cuts.

    Returns:
        The same model, with the same outputs up to rounding.

    Raises:
        StructureError: If something else is attached, or something cannot be merged or cut.
            The model is then untouched.
        ModelStateError: If the model is in a state where its weights cannot be changed, see ``model_state``.

    Example:
        >>> small = slim(attach(model, "exported/"), structure)      # doctest: +SKIP
    """
    check_state(model, allow={"attached"})
    if not attached:
        return _cut_plain(model, structure)
    slots = _check_attached(model, structure)
    kept = _check(model, units_cut(structure, positions_of(model)))
    merge(model)
    if gone := [slot for slot in slots if slot.kind.removes]:
        for slot in gone:
            if isinstance(slot.unit, RemovalUnit) and slot.unit.compensates:
                fold(base_of(model).get_submodule(slot.position.module), [slot])
        drop(model, gone)
    _cut_all(model, kept)
    return model


def units_cut(structure: Structure, positions: Sequence[Position]) -> dict[str, tuple[int, ...]]:
    """The single heads and neurons that a structure cuts, by position.

    Args:
        structure: Its candidates name heads, and blocks of neurons.
        positions: Those of the whole backbone.
    """
    removed = {}
    for candidate in structure.candidates:
        if candidate.which:
            sizes = structure.kind(candidate.kind).sizes(find(positions, candidate.position))
            ends = list(accumulate(sizes))
            blocks = (range(ends[i] - sizes[i], ends[i]) for i in sorted(candidate.which))
            removed[candidate.position] = tuple(unit for block in blocks for unit in block)
    return removed


def _cut_plain(model: M, structure: Structure) -> M:
    """Cut what a structure cuts, if that is all it does."""
    trained = [c for c in structure.candidates if not c.which]
    if trained:
        raise StructureError(
            f"the structure does not only cut: it has {trained[0].kind} at {trained[0].position}",
            "attach(model, folder) with its trained weights, then slim(model, structure)",
        )
    detach(attach(model, structure))  # for its checks
    return cut_units(model, units_cut(structure, positions_of(model)))


def _check_attached(model: nn.Module, structure: Structure) -> list[Slot]:
    """What is attached, if it is the structure, whole or what merging leaves of it."""
    attachment = attachment_of(model)
    slots = [] if attachment is None else attachment.slots
    found = {(slot.position.name, slot.kind.name): slot for slot in slots}
    wanted = {(c.position, c.kind): c for c in structure.candidates}
    left = {key for key, c in wanted.items() if not structure.kind(c.kind).mergeable}
    if found.keys() not in (wanted.keys(), left or wanted.keys()):
        position, kind = min(found.keys() ^ wanted.keys())
        raise StructureError(
            f"the structure is not what is attached to the model: they differ in {kind} at {position}",
            "attach(model, structure), train it or load its weights, then slim(model, structure)",
        )
    for key, slot in found.items():
        if isinstance(slot.unit, RemovalUnit) and slot.unit.which != wanted[key].which:
            raise StructureError(
                f"the model cuts {slot.unit.which} at {key[0]}, the structure {wanted[key].which}",
                "attach the structure that is to be cut",
            )
    return slots


def cut_units(model: M, removed: Mapping[str, Sequence[int]]) -> M:
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
    _cut_all(model, _check(model, removed))
    return model


def _cut_all(model: nn.Module, kept: Iterable[tuple[Position, Sequence[int]]]) -> None:
    """Keep these units at each position, all the others elsewhere."""
    base = base_of(model)
    for position, units in kept:
        _cut(base, position, units)
        if position.role == "heads":
            _count_heads(base, position, units)


def _check(
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
        features = _features(kept, feed.rows // position.units, feed.start)
        rows.setdefault(feed.module, []).extend(features)
    for path, features in rows.items():
        _keep_outputs(base.get_submodule(path), features)
    width = position.in_features // position.units
    _keep_inputs(base.get_submodule(position.module), _features(kept, width))


def _features(units: Sequence[int], width: int, start: int = 0) -> list[int]:
    """Features of units that lie side by side."""
    return [start + unit * width + i for unit in units for i in range(width)]


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
    family = str(base.config.model_type)  # type: ignore[union-attr]
    attention = base.get_submodule(position.feeds[0].module.rpartition(".")[0])
    if counters := _COUNTERS[family]:
        heads, features = counters
        setattr(attention, heads, len(kept))
        setattr(attention, features, len(kept) * (position.in_features // position.units))
    if family == "t5":
        from sparsearch.spaces._t5_bias import keep_heads

        keep_heads(attention, kept)
