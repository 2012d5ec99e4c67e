"""Merging: what is attached and mergeable becomes part of the backbone's own weights."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

from sparsearch.errors import StructureError
from sparsearch.spaces.attachment.attach import drop
from sparsearch.spaces.attachment.attached_unit import AttachedUnit
from sparsearch.spaces.attachment.attachment import Attachment, attachment_of
from sparsearch.spaces.attachment.elsewhere import check_here
from sparsearch.spaces.backbone.parameters import base_of
from sparsearch.spaces.backbone.state import check_state
from sparsearch.spaces.families.position import add_to_weight, weight_at
from sparsearch.spaces.kinds import Stage

__all__ = [
    "check_merge",
    "fold",
    "merge",
]

_STAGES: tuple[Stage, ...] = ("parallel", "mask", "cut", "sequential", "input")
"""Order of folding. A mask sets to zero also what parallel units add, sequential ones rescale the sum; an input unit
rescales what all of them see. Rescaling keeps zeros. What stands in for a cut is folded by ``compact`` alone."""


_FOLDS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


M = TypeVar("M", bound=nn.Module)


def merge(model: M) -> M:
    """Fold what is attached into the backbone's weights, so that the model needs no hooks for it.

    Units of kinds that do not merge (adapters) stay attached, and the backbone then stays frozen until
    ``detach``. Once nothing is attached any more, the trainable flags are as before ``attach``. A linear
    or LayerNorm without a bias gets one where a shift is folded; a plain transformers model of the same config
    has no place for it. Sums are made in float32, or float64 if the weight is, and rounded to the weight's
    type: in bfloat16 a small change may be lost.

    Args:
        model: A model with a trained structure attached; without one it is returned as it is.

    Returns:
        The same model, with the same outputs up to rounding.

    Raises:
        StructureError: If gates are set, or something cannot be folded: a shift of a norm that can have no bias
            (RMSNorm), a rescaling of an output that an adapter works on too, a weight that is quantised
            or shared with another module. The message names all of it; the model is then untouched.
        ModelStateError: If the model is in a state where weights cannot be folded, see ``model_state``.

    Example:
        >>> merge(attach(model, "exported/")).save_pretrained("merged/")  # doctest: +SKIP
    """
    check_merge(model)
    attachment = attachment_of(model)
    if attachment is None:
        return model
    hosts = _hosts(model, attachment)
    names = {module: name for name, module in model.named_modules()}
    trainable = attachment.requires_grad_before
    folded: list[AttachedUnit] = []
    try:
        for host, slots in hosts.items():
            if mergeable := [slot for slot in slots if slot.kind.mergeable]:
                path = names[host]
                if f"{path}.weight" in trainable:
                    trainable.setdefault(f"{path}.bias", trainable[f"{path}.weight"])  # may be new
                fold(host, mergeable)
                folded.extend(mergeable)
    finally:  # whatever stops it, no unit is both folded and attached
        drop(model, folded)
    return model


def check_merge(model: nn.Module) -> None:
    """All checks of ``merge`` before any change; to know before training whether what trains can be folded.

    Raises:
        StructureError: See ``merge``.
        ModelStateError: See ``merge``.
    """
    check_state(
        model, allow={"attached", "integer"}
    )  # a weight of integers is named with its unit
    attachment = attachment_of(model)
    if attachment is None:
        return
    hosts = _hosts(model, attachment)
    if any(slot.gate is not None or slot.idle for slots in hosts.values() for slot in slots):
        raise StructureError(
            "cannot merge while gates are set: a search runs on this model",
            "attach the structure that the search found, train it, then merge",
        )
    for host, slots in hosts.items():
        for slot in slots:
            slot.check_here()
        for parameter in host.parameters(recurse=False):
            check_here(parameter, f"the weight at {slots[0].position.name}")
    uses = Counter(id(p) for m in model.modules() for p in m.parameters(recurse=False))
    problems: list[str] = []
    for host, slots in hosts.items():
        shared = any(uses[id(p)] > 1 for p in host.parameters(recurse=False))
        problems += _problems(host, slots, shared)
    if problems:
        raise StructureError(
            "cannot merge " + "; ".join(problems),
            "leave the model as it is, attached, or choose a structure without them",
        )


def _hosts(model: nn.Module, attachment: Attachment) -> dict[nn.Module, list[AttachedUnit]]:
    hosts: dict[nn.Module, list[AttachedUnit]] = {}
    for slot in attachment.slots:
        host = base_of(model).get_submodule(slot.position.module)
        hosts.setdefault(host, []).append(slot)
    return hosts


def _problems(module: nn.Module, slots: Sequence[AttachedUnit], shared: bool) -> Iterator[str]:
    """Why units of one host do not fold."""
    kept = [
        _name(s)
        for s in slots
        if not s.kind.mergeable and s.kind.stage(s.position) in ("parallel", "sequential")
    ]  # on the output
    compensated = [_name(s) for s in slots if s.removal is not None and len(s.removal.stand_in)]
    for slot in slots:
        if not slot.kind.mergeable:
            continue
        weight = module.get_parameter(slot.position.parameter)
        if weight.dtype not in _FOLDS:
            yield f"{_name(slot)} (the weight is {weight.dtype} on {weight.device})"
        if shared:
            yield f"{_name(slot)} (another module shares the weight)"
        if slot.unit.constant and not _may_have_bias(module):
            yield f"{_name(slot)} ({type(module).__name__} has no bias)"
        stage = slot.kind.stage(slot.position)
        if compensated and stage in ("input", "mask"):
            yield f"{_name(slot)} (what stands in for {compensated[0]} would undo it)"
        if kept and stage == "sequential":
            yield f"{_name(slot)} (it rescales the output that {kept[0]} works on)"


def _name(slot: AttachedUnit) -> str:
    return f"{slot.kind.name} at {slot.position.name}"


def _may_have_bias(module: nn.Module) -> bool:
    has_bias = getattr(module, "bias", None) is not None
    return has_bias or isinstance(module, nn.Linear | nn.LayerNorm)


@torch.no_grad()
def fold(module: nn.Module, slots: Sequence[AttachedUnit]) -> None:
    """Change one module's weights and bias by its units, stage by stage."""
    weights: dict[str, list[AttachedUnit]] = {}
    for slot in slots:
        weights.setdefault(slot.position.parameter, []).append(slot)
    for parameter, units in weights.items():
        _fold_into(module, parameter, units)


def _fold_into(module: nn.Module, parameter: str, slots: Sequence[AttachedUnit]) -> None:
    """Change one of a module's weights; of several no one has a bias that units shift."""
    own, own_bias = module.get_parameter(parameter), getattr(module, "bias", None)
    wide = torch.promote_types(own.dtype, torch.float32)
    weight = own.to(wide, copy=True)
    bias: Tensor | None = None if own_bias is None else own_bias.to(wide, copy=True)
    for stage in _STAGES:
        now = [slot for slot in slots if slot.kind.stage(slot.position) == stage]
        # Units of one stage do not see each other: all changes first, then all sums.
        changes = [
            slot.unit.fold(weight_at(slot.position, module, weight), _part(bias, slot))
            for slot in now
        ]
        for slot, (to_weight, to_bias) in zip(now, changes, strict=True):
            if to_weight is not None:
                add_to_weight(slot.position, module, weight, to_weight)
            if to_bias is not None:
                bias = weight.new_zeros(len(weight)) if bias is None else bias
                bias[slot.position.rows] += to_bias
    own.copy_(weight)
    if own_bias is not None:
        own_bias.copy_(bias)
    elif bias is not None:
        module.bias = nn.Parameter(bias.to(own.dtype), requires_grad=False)


def _part(bias: Tensor | None, slot: AttachedUnit) -> Tensor | None:
    return None if bias is None else bias[slot.position.rows]
