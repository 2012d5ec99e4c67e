"""Attaching a structure (or a whole space, gated) to a model by hooks, and taking it off again.

The backbone's modules, names and weights stay as they are. What is attached lives in one
submodule of the model, so that any trainer's ``model.parameters()`` sees it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from sparsearch.errors import ConfigError, StructureError
from sparsearch.spaces._masked import leave_out_cuts
from sparsearch.spaces.attachment import Attachment, attachment_of
from sparsearch.spaces.backbone import (
    ATTACHED,
    BackboneId,
    backbone_parameters,
    base_of,
    hash_settings,
    head_parameters,
    know_pooler,
    positions_of,
    same_settings,
    same_weights,
    weight_fingerprint,
)
from sparsearch.spaces.hooks import hook
from sparsearch.spaces.kinds import Kind, Removal
from sparsearch.spaces.model_state import check_attachment, check_half, check_state
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
        ModelStateError: If the model is in a state where nothing can be attached, see ``model_state``.
    """
    check_state(model)
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
        structure: A structure (or its file), or a folder written by ``export --to spec``, whose
            trained weights are loaded too.

    Returns:
        The same model.

    Raises:
        StructureError: If the backbone is another one, a position is unknown, costs differ, or the
            folder's weights are missing or damaged. The model is then untouched.
        ModelStateError: If the model is in a state where nothing can be attached: wrapped, compiled, offloaded,
            quantised, with a PEFT adapter, half of the structure's backbone and so on. It is then untouched.

    Example:
        >>> model = attach(model, "exported/")                       # doctest: +SKIP
    """
    weights: Mapping[str, Tensor] = {}
    if not isinstance(structure, Structure):
        folder = Path(structure)
        structure = Structure.load(folder)
        weights = _stored_weights(folder, structure)
    units = check_structure(model, structure)
    know_pooler(model, structure.backbone.params)
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


def _stored_weights(folder: Path, structure: Structure) -> Mapping[str, Tensor]:
    """The trained weights beside a structure, if it has any."""
    file, hint = folder / "modules.safetensors", "export the structure anew, with --to spec"
    if not file.is_file():
        if folder.is_dir() and structure.bytes:
            raise StructureError(
                f"{str(folder)!r} has no {file.name} with the trained weights", hint
            )
        return {}
    try:
        return load_file(file)
    except (OSError, SafetensorError) as error:
        raise StructureError(f"cannot read {str(file)!r}: {error}", hint) from error


def check_structure(
    model: nn.Module, structure: Structure
) -> list[tuple[Position, Kind, int, int]]:
    """All checks before any change."""
    check_state(model)
    check_half(model, (c.position for c in structure.candidates), structure.backbone.params)
    positions = positions_of(model)
    _check_backbone(model, structure.backbone)
    kinds = {kind.name: kind for kind in structure.kinds}
    problems = structure.problems()
    for c in structure.candidates:
        if c.kind in kinds:
            problems += _misplaced(c, kinds[c.kind], positions)
    if not problems:
        problems = _mispriced(structure, positions)
    if problems:
        raise StructureError("the structure cannot be attached: " + "; ".join(problems))
    return [(find(positions, c.position), kinds[c.kind], c.size, 1) for c in structure.candidates]


def _check_backbone(model: nn.Module, expected: BackboneId) -> None:
    """The model must have the structure's backbone: its family, its weights and its settings."""
    family = model.config.model_type  # type: ignore[union-attr]
    if family != expected.family or not same_weights(model, expected.weight_fingerprint):
        dtype = next(model.parameters()).dtype
        rounded = (
            "" if dtype.itemsize >= 4 else f"; if they were rounded to {dtype}, cast after attach"
        )
        raise StructureError(
            f"the structure belongs to another backbone: {expected.family} from {expected.path!r} "
            f"(fingerprint {expected.weight_fingerprint[:12]}), the model is {family} "
            f"(fingerprint {weight_fingerprint(model)[:12]})",
            f"load the backbone that the structure names, with its original weights{rounded}",
        )
    if not same_settings(hash_settings(model), expected.config_hash):
        raise StructureError(
            f"the model has the weights of the structure's backbone {expected.path!r}, but its config has other "
            "settings, with which they compute something else",
            "load the model with the config.json of that backbone: heads, activations, epsilons and positions as "
            "they are there",
        )


def _misplaced(candidate: Candidate, kind: Kind, positions: Sequence[Position]) -> Iterator[str]:
    """Why a candidate cannot be at its position in its size."""
    name = f"{kind.name} at {candidate.position}"
    try:
        position = find(positions, candidate.position)
        largest = kind.largest(position) if kind.accepts(position) else 0
    except StructureError as error:
        yield f"{name}: {error.message} ({error.hint})"
    except ConfigError as error:
        yield from error.problems
    else:
        if not largest:
            yield f"{kind.name} cannot be attached at {position.name}"
        elif kind.removes or candidate.which:
            yield from _wrong_cut(candidate, kind, position)
        elif candidate.size > largest:
            yield f"{name} has size {candidate.size}, of at most {largest}"


def _wrong_cut(candidate: Candidate, kind: Kind, position: Position) -> Iterator[str]:
    """What is cut must exist, each part be cut once, and enough be left."""
    sizes, which = kind.sizes(position) if kind.removes else (), candidate.which
    least = kind.least(position) if isinstance(kind, Removal) else 0
    if not which or len(set(which)) < len(which) or not set(range(len(sizes))).issuperset(which):
        yield (
            f"{kind.name} at {position.name}: {list(which)} cannot be cut; its {len(sizes)} parts are "
            "numbered from 0, each is cut at most once"
        )
    elif sum(sizes[i] for i in which) != candidate.size:
        yield f"{candidate.size} {kind.name} cannot be cut at {position.name}: its parts add up to other sizes"
    elif position.units - candidate.size < least:
        yield (
            f"{candidate.size} {kind.name} cannot be cut at {position.name}: of {position.units}, {least} stay"
        )


def _mispriced(structure: Structure, positions: Sequence[Position]) -> list[str]:
    """Candidates that do not cost what the structure says."""
    now, before = (narrow(positions, structure.candidates, trained=t) for t in (True, False))
    problems = []
    for c in structure.candidates:
        kind = structure.kind(c.kind)
        whole = make_candidate(kind, find(positions, c.position), c.size, c.which)
        earlier = make_candidate(kind, find(before, c.position), c.size, c.which)
        # Earlier files count neither what stands in for a cut as read, nor what has no gradient as stored.
        if c not in (recount(whole, kind, now), earlier):
            problems.append(
                f"{c.kind} of size {c.size} at {c.position} does not cost what the structure says"
            )
    return problems


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
