"""Attaching a structure (or a whole space, gated) to a model by hooks, and taking it off again.

The backbone's modules, names and weights stay as they are. What is attached lives in one
submodule of the model, so that any trainer's ``model.parameters()`` sees it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TypeVar

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from sparsearch.errors import StructureError
from sparsearch.spaces.attachment.attached_unit import AttachedUnit
from sparsearch.spaces.attachment.attachment import Attachment, attachment_of
from sparsearch.spaces.attachment.changed_weight import leave_out_cuts
from sparsearch.spaces.attachment.check import check_structure
from sparsearch.spaces.attachment.hooks import Handle, hook
from sparsearch.spaces.attachment.remade import check_remade
from sparsearch.spaces.attachment.weights_file import load_weights
from sparsearch.spaces.backbone.parameters import (
    ATTACHED,
    backbone_parameters,
    base_of,
    head_parameters,
    language_head_parameters,
    mark_new_pooler,
)
from sparsearch.spaces.backbone.quantised.check import check_quantised
from sparsearch.spaces.backbone.quantised.weights import KeptAsLoaded
from sparsearch.spaces.backbone.state import check_attachment, check_state
from sparsearch.spaces.families.position import Position
from sparsearch.spaces.kinds import Kind
from sparsearch.spaces.structure import Structure

__all__ = [
    "attach",
    "attach_modules",
    "detach",
    "drop",
]

M = TypeVar("M", bound=nn.Module)


def attach_modules(
    model: nn.Module, units: Iterable[tuple[Position, Kind, int, int]], train_head: bool = True
) -> Attachment:
    """Attach units, each on the device of its host, and make only them and the task head trainable.

    Args:
        model: The model; nothing may be attached to it yet.
        units: (position, kind, size, number of gates) of each.
        train_head: Whether the task head trains.

    Raises:
        ModelStateError: If the model is in a state where nothing can be attached, see ``model_state``.
    """
    check_state(model, allow={"bitsandbytes", "dispatched"})
    units = list(units)
    check_quantised(model, (kind for _, kind, _, _ in units))
    modules = dict(base_of(model).named_modules())
    attachment = Attachment()
    for position, kind, size, gates in units:
        host = modules[position.module]
        device = next(host.parameters()).device
        unit = kind.build(position, size, host)
        if any(tensor.device != device for tensor in (*unit.parameters(), *unit.buffers())):
            unit = unit.to(device)
        slot = AttachedUnit(unit, position, kind)
        attachment.units[slot.key] = unit
        attachment.slots.append(slot)
        attachment.gate_sizes.append(gates)
    attachment.handles.extend(_hook(model, attachment.slots))
    attachment.requires_grad_before = {n: p.requires_grad for n, p in model.named_parameters()}
    for _, parameter in (*backbone_parameters(model), *language_head_parameters(model)):
        parameter.requires_grad_(False)
    for _, parameter in head_parameters(model):
        parameter.requires_grad_(train_head)
    model.add_module(ATTACHED, attachment)
    return attachment


def attach(model: M, structure: Structure | str | Path) -> M:
    """Attach a structure, ready for any trainer: only its modules and the task head are trainable.

    Args:
        model: A model with the structure's backbone, with any head.
        structure: A structure (or its file), or a folder written by ``export --to spec``, whose
            trained weights are loaded too.

    Returns:
        The same model.

    Raises:
        StructureError: If the backbone is another one, a position is unknown, costs differ, the
            folder's weights are missing or damaged, or were trained at places that are found elsewhere here. The
            model is then untouched.
        ModelStateError: If the model is in a state where nothing can be attached: wrapped, compiled, offloaded,
            quantised, with a PEFT adapter, half of the structure's backbone and so on. It is then untouched.

    Example:
        >>> model = attach(model, "exported/")                       # doctest: +SKIP
    """
    weights: Mapping[str, Tensor] = {}
    metadata: Mapping[str, str] = {}
    if not isinstance(structure, Structure):
        folder = Path(structure)
        structure = Structure.load(folder)
        weights, metadata = _stored_weights(folder, structure)
    units = check_structure(model, structure)
    mark_new_pooler(model, structure.backbone.params)
    with torch.inference_mode(False):  # what is made inside it could never train
        attachment = attach_modules(model, units)
    attachment.structure = structure
    for candidate, slot in zip(structure.candidates, attachment.slots, strict=True):
        if slot.removal is not None:
            slot.removal.cut(candidate.which)
    leave_out_cuts(attachment.slots, dict(base_of(model).named_modules()))
    try:
        check_remade(model, metadata)
        if weights:
            load_weights(model, weights)
    except StructureError:
        detach(model)
        raise
    return model


def _stored_weights(
    folder: Path, structure: Structure
) -> tuple[Mapping[str, Tensor], Mapping[str, str]]:
    """The trained weights beside a structure, if it has any, and the metadata of their file."""
    file, hint = folder / "modules.safetensors", "export the structure anew, with --to spec"
    if not file.is_file():
        if folder.is_dir() and structure.bytes:
            raise StructureError(
                f"{str(folder)!r} has no {file.name} with the trained weights", hint
            )
        return {}, {}
    try:
        with safe_open(file, "pt") as opened:
            names = opened.keys()
            return {name: opened.get_tensor(name) for name in names}, opened.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise StructureError(f"cannot read {str(file)!r}: {error}", hint) from error


def detach(model: M) -> M:
    """Take everything attached off again; weights and trainable flags are as before ``attach``.

    Raises:
        ModelStateError: If the structure is attached to a part of the model (``model`` may be a wrapper), to a
            model that this is a part of, or the model was compiled since: hooks would run on.
    """
    check_attachment(model)
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


def drop(model: nn.Module, units: Collection[AttachedUnit]) -> None:
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
    attachment.structure = None
    attachment.slots = [slot for slot, _ in kept]
    attachment.gate_sizes = [size for _, size in kept]
    attachment.handles = list(_hook(model, attachment.slots))


def _hook(model: nn.Module, slots: Iterable[AttachedUnit]) -> Iterator[Handle]:
    """What makes units run, and keeps the weights beside them as they are."""
    yield KeptAsLoaded(model)
    yield from hook(dict(base_of(model).named_modules()), slots)
