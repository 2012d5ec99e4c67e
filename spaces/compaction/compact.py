"""Slimming: heads and neurons are cut out of the weights; what is left is a smaller model of the same class.

``compact`` does all that makes a trained model smaller, ``remove_units`` the cutting alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

from torch import nn

from sparsearch.errors import StructureError
from sparsearch.spaces.attachment.attach import attach, detach, drop
from sparsearch.spaces.attachment.attached_unit import AttachedUnit
from sparsearch.spaces.attachment.attachment import attachment_of
from sparsearch.spaces.attachment.check import check_attached
from sparsearch.spaces.backbone.parameters import base_of, positions_of
from sparsearch.spaces.backbone.state import check_state
from sparsearch.spaces.compaction.merge import fold, merge
from sparsearch.spaces.compaction.remove import M, check_removal, remove_all, remove_units
from sparsearch.spaces.families.position import Position, find
from sparsearch.spaces.structure import Structure

__all__ = [
    "compact",
    "units_removed",
]


def compact(model: M, structure: Structure, *, attached: bool = True) -> M:
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
        >>> small = compact(attach(model, "exported/"), structure)      # doctest: +SKIP
    """
    check_state(model, allow={"attached"})
    if not attached:
        return _cut_plain(model, structure)
    slots = _check_attached(model, structure)
    _check_heads(slots)
    kept = check_removal(model, units_removed(structure, positions_of(model)))
    merge(model)
    if gone := [slot for slot in slots if slot.kind.role == "remove"]:
        for slot in gone:
            if slot.removal is not None and slot.removal.compensates:
                fold(base_of(model).get_submodule(slot.position.module), [slot])
        drop(model, gone)
    remove_all(model, kept)
    return model


def units_removed(
    structure: Structure, positions: Sequence[Position]
) -> dict[str, tuple[int, ...]]:
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
            "attach(model, folder) with its trained weights, then compact(model, structure)",
        )
    detach(attach(model, structure))  # for its checks
    return remove_units(model, units_removed(structure, positions_of(model)))


def _check_heads(slots: Sequence[AttachedUnit]) -> None:
    """Nothing may compute with heads that are cut."""
    cut = {slot.position.module for slot in slots if slot.removal is not None}
    for slot in slots:
        if slot.kind.stage(slot.position) == "heads" and slot.position.module in cut:
            raise StructureError(
                f"{slot.kind.name} at {slot.position.name} computes with heads that are cut",
                "leave the model as it is, attached, or choose a structure without one of them",
            )


def _check_attached(model: nn.Module, structure: Structure) -> list[AttachedUnit]:
    """What is attached, if it is the structure, whole or what merging leaves of it."""
    attachment = attachment_of(model)
    slots = [] if attachment is None else attachment.slots
    check_attached(slots, structure, merged=True)
    return slots
