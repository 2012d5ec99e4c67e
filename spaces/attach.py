"""Attaching a structure (or a whole space, gated) to a model by hooks, and taking it off again.

The backbone's modules, names and weights stay as they are. What is attached lives in one
submodule of the model, so that any trainer's ``model.parameters()`` sees it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import TypeVar

from safetensors.torch import load_file
from torch import Tensor, nn

from sparsearch.errors import StructureError
from sparsearch.spaces._masked import leave_out_cuts
from sparsearch.spaces.attachment import Attachment, attachment_of
from sparsearch.spaces.backbone import (
    ATTACHED,
    backbone_parameters,
    base_of,
    head_parameters,
    identify,
    positions_of,
)
from sparsearch.spaces.hooks import hook
from sparsearch.spaces.kinds import Kind
from sparsearch.spaces.positions import Position, find
from sparsearch.spaces.slots import Slot
from sparsearch.spaces.space import Candidate, make_candidate, narrow, recount
from sparsearch.spaces.structure import Structure
from sparsearch.spaces.units.removal import RemovalUnit
from sparsearch.spaces.weights_file import load_weights

__all__ = [
    "attach",
    "attach_units",
    "check_structure",
    "detach",
    "drop",
]

M = TypeVar("M", bound=nn.Module)


def attach_units(
    model: nn.Module, units: Iterable[tuple[Position, Kind, int, int]], train_head: bool = True
) -> Attachment:
    """Attach units and make only them and the task head trainable.

    Args:
        model: The model; nothing may be attached to it yet.
        units: (position, kind, size, number of gates) of each.
        train_head: Whether the task head trains.

    Raises:
        StructureError: If something is attached already.
    """
    if attachment_of(model) is not None:
        raise StructureError("the model already has a structure attached", "detach(model) first")
    modules = dict(base_of(model).named_modules())
    attachment = Attachment()
    device = next(model.parameters()).device
    for position, kind, size, gates in units:
        unit = kind.build(position, size, modules[position.module]).to(device)
        slot = Slot(unit, position, kind)
        attachment.units[slot.key] = unit
        attachment.slots.append(slot)
        attachment.gate_sizes.append(gates)
    attachment.handles.extend(hook(modules, attachment.slots))
    attachment.requires_grad_before = {n: p.requires_grad for n, p in model.named_parameters()}
    for _, parameter in backbone_parameters(model):
        parameter.requires_grad_(False)
    for _, parameter in head_parameters(model):
        parameter.requires_grad_(train_head)
    model.add_module(ATTACHED, attachment)
    return attachment


def attach(model: M, structure: Structure | str | Path) -> M:
    """Attach a structure, ready for any trainer: only its modules and the task head are trainable.

    Args:
        model: A model with the structure's backbone, with any head.
        structure: A structure, or a folder written by ``export --to spec``, whose trained
            weights are loaded too.

    Returns:
        The same model.

    Raises:
        StructureError: If the backbone is another one, a position is unknown, or costs differ.
            The model is then untouched.

    Example:
        >>> model = attach(model, "exported/")                       # doctest: +SKIP
    """
    weights: Mapping[str, Tensor] = {}
    if not isinstance(structure, Structure):
        folder = Path(structure)
        structure = Structure.load(folder)
        if (folder / "modules.safetensors").is_file():
            weights = load_file(folder / "modules.safetensors")
    units = check_structure(model, structure)
    attachment = attach_units(model, units)
    for candidate, slot in zip(structure.candidates, attachment.slots, strict=True):
        if isinstance(slot.unit, RemovalUnit):
            slot.unit.cut(candidate.which)
    leave_out_cuts(attachment.slots, dict(base_of(model).named_modules()))
    try:
        if weights:
            load_weights(model, weights)
    except StructureError:
        detach(model)
        raise
    return model


def check_structure(
    model: nn.Module, structure: Structure
) -> list[tuple[Position, Kind, int, int]]:
    """All checks before any change."""
    found = identify(model)
    expected = structure.backbone
    if found.family != expected.family or found.weight_fingerprint != expected.weight_fingerprint:
        raise StructureError(
            f"the structure belongs to another backbone: {expected.family} from {expected.path!r} "
            f"(fingerprint {expected.weight_fingerprint[:12]}), the model is {found.family} "
            f"(fingerprint {found.weight_fingerprint[:12]})",
            "load the backbone that the structure names, with its original weights",
        )
    positions = positions_of(model)
    units = []
    for candidate in structure.candidates:
        kind, position = structure.kind(candidate.kind), find(positions, candidate.position)
        if not kind.accepts(position):
            raise StructureError(f"{kind.name} cannot be attached at {position.name}")
        _check_cut(kind, position, candidate)
        units.append((position, kind, candidate.size, 1))
    narrowed = narrow(positions, structure.candidates)
    for (position, kind, size, _), candidate in zip(units, structure.candidates, strict=True):
        if candidate != recount(
            make_candidate(kind, position, size, candidate.which), kind, narrowed
        ):
            raise StructureError(
                f"{kind.name} of size {size} at {position.name} does not cost what the structure says"
            )
    return units


def _check_cut(kind: Kind, position: Position, candidate: Candidate) -> None:
    """What is cut must exist, each part be cut once, and something be left."""
    sizes, which = kind.sizes(position) if kind.removes else (), candidate.which
    if not kind.removes and not which:
        return
    if not which or len(set(which)) < len(which) or not set(range(len(sizes))).issuperset(which):
        raise StructureError(
            f"{kind.name} at {position.name}: {list(which)} cannot be cut; its {len(sizes)} parts are "
            "numbered from 0, each is cut at most once"
        )
    if sum(sizes[i] for i in which) != candidate.size or len(which) == len(sizes):
        raise StructureError(f"{candidate.size} {kind.name} cannot be cut at {position.name}")


def detach(model: M) -> M:
    """Take everything attached off again; weights and trainable flags are as before ``attach``."""
    attachment = attachment_of(model)
    if attachment is None:
        return model
    for handle in attachment.handles:
        handle.remove()
    delattr(model, ATTACHED)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(
            attachment.requires_grad_before.get(name, parameter.requires_grad)
        )
    return model


def drop(model: nn.Module, units: Collection[Slot]) -> None:
    """Take some of what is attached off; with the last unit, ``detach``. The others run and train on."""
    attachment = attachment_of(model)
    assert attachment is not None, "units are dropped from an attachment"
    sizes = zip(attachment.slots, attachment.gate_sizes, strict=True)
    kept = [(slot, size) for slot, size in sizes if slot not in units]
    if not kept:
        detach(model)
        return
    for handle in attachment.handles:
        handle.remove()
    for slot in units:
        del attachment.units[slot.key]
    attachment.slots = [slot for slot, _ in kept]
    attachment.gate_sizes = [size for _, size in kept]
    attachment.handles = list(hook(dict(base_of(model).named_modules()), attachment.slots))
