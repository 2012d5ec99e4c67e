"""Attaching a structure (or a whole space, gated) to a model by hooks, and taking it off again.

The backbone's modules, names and weights stay as they are. What is attached lives in one
submodule of the model, so that any trainer's ``model.parameters()`` sees it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from sparsearch.errors import StructureError
from sparsearch.spaces._masked import Masked
from sparsearch.spaces.backbone import (
    ATTACHED,
    backbone_parameters,
    base_of,
    head_parameters,
    identify,
    positions_of,
)
from sparsearch.spaces.kinds import Kind, LowRankUnit, RemovalUnit, Unit, add_low_rank
from sparsearch.spaces.kinds.lnfit import LNFitUnit
from sparsearch.spaces.positions import Position, find
from sparsearch.spaces.space import Candidate, make_candidate, narrow, recount
from sparsearch.spaces.structure import Structure

__all__ = [
    "Attachment",
    "Slot",
    "attach",
    "attach_units",
    "attachment_of",
    "check_structure",
    "detach",
    "drop",
    "load_weights",
    "weights_of",
]

HEAD = "head:"
"""Prefix of the task head's tensors in a weights file."""

BACKBONE = "backbone:"
"""Prefix of the backbone's own tensors, where it was trained too."""

M = TypeVar("M", bound=nn.Module)


class Slot:
    """One unit at one position; ``gate`` is set while a supernet runs."""

    def __init__(self, unit: Unit, position: Position, kind: Kind) -> None:
        self.unit = unit
        self.kind = kind
        self.position = position
        self.gate: Tensor | None = None
        self.idle = False
        self.start = position.start
        self.width = position.out_features
        self.seen: Tensor | None = None

    @property
    def key(self) -> str:
        """Name of the unit among the attached ones."""
        return f"{self.position.name.replace('.', '/')}:{self.kind.name}"

    @property
    def changes_weight(self) -> bool:
        """Whether the unit, beside a linear, is one with a change of its weight."""
        return self.kind.mergeable and not self.unit.constant

    def delta(self, x: Tensor) -> Tensor:
        """The unit's change."""
        if not torch.is_autocast_enabled(x.device.type):
            x = x.to(next(self.unit.parameters()).dtype)
        change: Tensor = self.unit(x, self.gate)
        return change

    def add_to(self, y: Tensor, x: Tensor) -> Tensor:
        """Y plus the unit's change, on the unit's slice of a fused output."""
        change = self.delta(x).to(y.dtype)
        rest = y.shape[-1] - self.start - self.width
        if self.start or rest:
            change = nn.functional.pad(change, (self.start, rest))
        return y + change


def _running(slots: list[Slot]) -> Iterator[Slot]:
    return (slot for slot in slots if not slot.idle)


def _add_together(y: Tensor, x: Tensor, thin: list[Slot], vectors: list[Slot]) -> Tensor:
    """Low-rank units and vectors of one host in one go."""
    x = x if torch.is_autocast_enabled(x.device.type) else x.to(y.dtype)
    units = [slot.unit for slot in thin if isinstance(slot.unit, LowRankUnit)]
    changes = [slot.unit(x, slot.gate) for slot in vectors]
    return add_low_rank(y, x, units, [slot.gate for slot in thin], changes)


class _Norm:
    """A LayerNorm whose gain and bias are changed by units: one norm, where adding the changes needs two."""

    def __init__(self, norm: nn.LayerNorm, slots: list[Slot]) -> None:
        self.norm, self.slots = norm, slots
        norm.forward = self.forward  # type: ignore[assignment]

    def forward(self, x: Tensor) -> Tensor:
        """The norm, in its module's stead."""
        norm = self.norm
        gain: Tensor = norm.weight
        bias: Tensor = norm.bias
        for slot in _running(self.slots):
            if isinstance(slot.unit, LNFitUnit):
                gain = gain + slot.unit.change(slot.gate)
            else:
                bias = bias + slot.unit(x, slot.gate)
        return nn.functional.layer_norm(x, norm.normalized_shape, gain, bias, norm.eps)

    def remove(self) -> None:
        """The module as it was."""
        del self.norm.forward


class _Host:
    """The hooks of one backbone module: input units, then cuts, parallel ones with masks, and sequential ones."""

    def __init__(self) -> None:
        self.before_units: list[Slot] = []
        self.cutting: list[Slot] = []
        self.capturing: list[Slot] = []
        self.parallel: list[Slot] = []
        self.masks: list[Slot] = []
        self.captured: list[Slot] = []
        self.sequential: list[Slot] = []

    def before(self, module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        for slot in self.capturing:
            slot.seen = args[0]
        if not self.before_units and not self.cutting:
            return None
        x = args[0]
        for slot in _running(self.before_units):
            x = x + slot.delta(args[0]).to(x.dtype)
        for slot in _running(self.cutting):
            x = slot.unit(x, slot.gate)
        return (x, *args[1:])

    def after(self, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        y = output
        running = list(_running(self.parallel))
        whole = [slot for slot in running if y.shape[-1] == slot.width]
        thin = [slot for slot in whole if isinstance(slot.unit, LowRankUnit)]
        if thin:
            vectors = [slot for slot in whole if slot.unit.constant]
            y = _add_together(y, args[0], thin, vectors)
            running = [slot for slot in running if slot not in (*thin, *vectors)]
        for slot in running:
            y = slot.add_to(y, args[0])
        for slot in _running(self.captured):
            assert slot.seen is not None, "a block's exit ran before its entry"
            y = slot.add_to(y, slot.seen)
            slot.seen = None
        z = y
        for slot in _running(self.sequential):
            z = slot.add_to(z, y[..., slot.start : slot.start + slot.width])
        return z

    def hook(self, module: nn.Module) -> Iterator[RemovableHandle | _Norm | Masked]:
        if isinstance(module, nn.LayerNorm) and module.bias is not None:
            inside = [s for s in self.parallel if s.unit.constant or isinstance(s.unit, LNFitUnit)]
            self.parallel = [slot for slot in self.parallel if slot not in inside]
            yield _Norm(module, inside)
        if self.masks:
            masked = {slot.position.name for slot in self.masks}
            inside = [s for s in self.parallel if s.changes_weight and s.position.name in masked]
            self.parallel = [slot for slot in self.parallel if slot not in inside]
            yield Masked(module, self.masks, inside)
        if self.before_units or self.cutting or self.capturing:
            yield module.register_forward_pre_hook(self.before)
        if self.parallel or self.captured or self.sequential:
            yield module.register_forward_hook(self.after)


class Attachment(nn.Module):
    """Everything attached to one model.

    Attributes:
        units: ``position/with/slashes:kind`` -> the attached module.
        gate_sizes: Candidates of each unit, in order; a gate vector is split accordingly.
    """

    def __init__(self) -> None:
        super().__init__()
        self.units = nn.ModuleDict()
        self.slots: list[Slot] = []
        self.gate_sizes: list[int] = []
        self.handles: list[RemovableHandle | _Norm | Masked] = []
        self.requires_grad_before: dict[str, bool] = {}

    @contextmanager
    def gated(self, z: Tensor) -> Iterator[None]:
        """Multiply each candidate by its gate inside the context; z has one entry per candidate."""
        for slot, gate in zip(self.slots, z.split(self.gate_sizes), strict=True):  # type: ignore[no-untyped-call]
            slot.gate = gate
        try:
            yield
        finally:
            for slot in self.slots:
                slot.gate = None

    def skip(self, idle: Sequence[bool]) -> None:
        """Do not run units all of whose candidates are idle, as if their gates were 0."""
        start = 0
        for slot, size in zip(self.slots, self.gate_sizes, strict=True):
            slot.idle = all(idle[start : start + size])
            start += size

    @property
    def masked(self) -> list[Masked]:
        """The linears whose weights are masked."""
        return [handle for handle in self.handles if isinstance(handle, Masked)]

    @property
    def settled(self) -> bool:
        """Whether everything is in its final form: masks are from a point of training on."""
        return all(masked.settled for masked in self.masked)

    def advance(self, step: int, steps: int) -> None:
        """Tell what is attached that so many optimiser steps of all are done; 0 at the start of training.

        Masks then are dense at first and prune more and more, see ``kinds.weight_mask.cubic``. Where nobody
        tells them, they stay as they are: those of the smallest weights, or the ones that were loaded.
        """
        for masked in self.masked:
            masked.advance(step, steps)

    def forward(self) -> None:
        """Attached units run inside the backbone's forward."""
        raise TypeError("call the model, not its attachment")


def attachment_of(model: nn.Module) -> Attachment | None:
    """What is attached to a model, if anything."""
    found = getattr(model, ATTACHED, None)
    return found if isinstance(found, Attachment) else None


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
    attachment.handles.extend(_hook(modules, attachment.slots))
    attachment.requires_grad_before = {n: p.requires_grad for n, p in model.named_parameters()}
    for _, parameter in backbone_parameters(model):
        parameter.requires_grad_(False)
    for _, parameter in head_parameters(model):
        parameter.requires_grad_(train_head)
    model.add_module(ATTACHED, attachment)
    return attachment


def _hook(
    modules: Mapping[str, nn.Module], slots: Iterable[Slot]
) -> Iterator[RemovableHandle | _Norm | Masked]:
    """Hook units into the backbone's modules, host by host."""
    hosts: dict[str, _Host] = {}
    for slot in slots:
        position, stage = slot.position, slot.kind.stage(slot.position)
        host = hosts.setdefault(position.module, _Host())
        if stage == "input":
            host.before_units.append(slot)
        elif stage == "cut":
            host.cutting.append(slot)
        elif stage == "mask":
            host.masks.append(slot)
        elif stage == "sequential":
            host.sequential.append(slot)
        elif position.entry == position.module:
            host.parallel.append(slot)
        else:
            hosts.setdefault(position.entry, _Host()).capturing.append(slot)
            host.captured.append(slot)
    for name, host in hosts.items():
        yield from host.hook(modules[name])


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
    attachment.handles = list(_hook(dict(base_of(model).named_modules()), attachment.slots))


def _named_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """File name -> tensor: ``layers.0.attn.q:lora.A`` for attached modules, ``head:...`` for the head."""
    attachment = attachment_of(model)
    if attachment is not None:
        for name, tensor in attachment.units.state_dict(keep_vars=True).items():
            yield name.replace("/", "."), tensor
    for name, parameter in head_parameters(model):
        yield HEAD + name, parameter


def weights_of(model: nn.Module, *, whole: bool = False) -> dict[str, Tensor]:
    """Copies of the attached modules' and the head's weights, on the CPU, by file name; or of all weights."""
    named = dict(_named_tensors(model))
    if whole:
        named |= {BACKBONE + n: p for n, p in backbone_parameters(model)}
    return {n: p.detach().cpu().clone().contiguous() for n, p in named.items()}


def load_weights(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Load what ``weights_of`` gave. A head of another shape (another task) is left as it is.

    Raises:
        StructureError: If an attached module's tensor is missing, unknown, or has another shape.
    """
    wanted = dict(_named_tensors(model))
    unknown = sorted(n for n in weights if n not in wanted and not n.startswith(HEAD))
    missing = sorted(n for n in wanted if n not in weights and not n.startswith(HEAD))
    shapes = sorted(
        n
        for n, p in wanted.items()
        if n in weights and not n.startswith(HEAD) and p.shape != weights[n].shape
    )
    if unknown or missing or shapes:
        raise StructureError(
            "the weights do not belong to this structure: "
            f"unknown {unknown[:3]}, missing {missing[:3]}, other shape {shapes[:3]}"
        )
    attachment = attachment_of(model)
    parameters = dict(model.named_parameters())
    head = {n.removeprefix(HEAD): t for n, t in weights.items() if n.startswith(HEAD)}
    fits = all(n in parameters and parameters[n].shape == t.shape for n, t in head.items())
    with torch.no_grad():
        for name, parameter in wanted.items():
            if not name.startswith(HEAD):
                parameter.copy_(weights[name])
        for name, tensor in head.items() if fits else ():
            parameters[name].copy_(tensor)
    for slot in attachment.slots if attachment is not None else ():
        slot.unit.loaded()
