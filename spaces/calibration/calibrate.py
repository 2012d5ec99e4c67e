"""Aligning: frozen parts of units that the task chooses, by how weights change and what passes through them."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from sparsearch.errors import StructureError
from sparsearch.spaces.attachment.attachment import attachment_of
from sparsearch.spaces.backbone.parameters import base_of, host_weight
from sparsearch.spaces.backbone.state import check_state
from sparsearch.spaces.calibration.statistics import RECORDERS
from sparsearch.spaces.families.position import Position, weight_at
from sparsearch.spaces.kinds import Kind
from sparsearch.spaces.kinds.module_base import Basis
from sparsearch.spaces.kinds.precision import split_bits

__all__ = [
    "Aligning",
    "Bases",
    "calibrate",
    "aligning_at",
    "find_bases",
    "hosts_by_weight",
    "take_bases",
]

Aligning = Collection[tuple[Position, Kind]]
"""Kinds whose units have frozen parts that the task chooses, and where."""

Bases = Mapping[tuple[str, str], Basis]
"""Names of position and kind -> frozen parts."""


def calibrate(
    model: nn.Module, losses: Iterable[Tensor], changes: Mapping[str, Tensor] | None = None
) -> None:
    """Choose the frozen parts of attached, untrained units by the mean gradient of their hosts' weights.

    The singular vectors of the first gradient say where a low-rank change lowers the loss, as LoRA-GA
    and GoRA start LoRA; those of the weights themselves, which ``attach`` takes, do not. Let the head learn
    first: gradients through a random head say little. Where nothing aligns, no loss is asked for.

    Args:
        model: With something attached that has not been trained, so that it is still the identity.
        losses: Losses of a few batches, computed as they are asked for.
        changes: Path of a module in the backbone (of the parameter, where that is not called ``weight``) -> how its
            weight changes in a brief fine-tuning (of a copy, by any trainer), in the place of the gradient.

    Raises:
        StructureError: If a change is missing, or has another shape than its weight.
        ModelStateError: If the model is in a state where its weights cannot be read, see ``model_state``.

    Example:
        >>> calibrate(model, (model(**batch).loss for batch in loader))  # doctest: +SKIP
    """
    check_state(model, allow={"attached", "bitsandbytes"})
    attachment = attachment_of(model)
    slots = attachment.slots if attachment is not None else []
    aligning = [(slot.position, slot.kind) for slot in slots if slot.kind.aligns]
    if changes is not None:
        _check_changes(model, hosts_by_weight(aligning), changes)
    cutting = [slot for slot in slots if slot.kind.role == "remove"]
    for slot in cutting:
        slot.idle = True  # what goes is seen before it does
    try:
        bases = find_bases(model, aligning, losses, changes)
    finally:
        for slot in cutting:
            slot.idle = False
    take_bases(model, bases)


def _check_changes(
    model: nn.Module, hosts: Collection[str], changes: Mapping[str, Tensor]
) -> None:
    base = base_of(model)
    shapes = {path: tuple(host_weight(base, path).shape) for path in hosts}
    problems = []
    for path, shape in shapes.items():
        if path not in changes:
            near = difflib.get_close_matches(path, changes, n=1)
            problems.append(f"{path} is missing" + (f" (there is {near[0]})" if near else ""))
        elif tuple(changes[path].shape) != shape:
            problems.append(f"{path} is {tuple(changes[path].shape)}, its weight {shape}")
    if problems:
        raise StructureError(
            "changes do not fit: " + "; ".join(problems[:5]),
            "name modules by their path inside the backbone, without '.weight'",
        )


def aligning_at(kinds: Iterable[Kind], positions: Iterable[Position]) -> Aligning:
    """The kinds that align, wherever they may go."""
    aligning = [kind for kind in kinds if kind.aligns]
    return [(p, kind) for p in positions for kind in aligning if kind.accepts(p)]


def hosts_by_weight(aligning: Aligning) -> list[str]:
    """Paths of the hosts whose kinds look at a change of the weight; the others look at what passes through."""
    by_weight = (p.host for p, k in aligning if k.statistics == "weight change")
    return list(dict.fromkeys(by_weight))


def find_bases(
    model: nn.Module,
    aligning: Aligning,
    losses: Iterable[Tensor],
    changes: Mapping[str, Tensor] | None = None,
) -> Bases:
    """What kinds take from the mean gradient (or a change) at some positions, and from what passes through linears.

    Args:
        model: The identity point: nothing attached, or nothing of it trained.
        aligning: The kinds and positions.
        losses: Losses of a few batches, computed as they are asked for; none is if nothing needs them.
        changes: Path of a host -> how its weight would change, in the place of the gradient.
    """
    if not aligning:
        return {}
    base = base_of(model)
    modules = {p.module: base.get_submodule(p.module) for p, _ in aligning}
    hosts = {p.host: host_weight(base, p.host) for p, _ in aligning}
    # Several positions may share a module (fused projections), which is seen once.
    seen = dict.fromkeys((p.module, k.statistics) for p, k in aligning)
    recorders = {
        (module, what): RECORDERS[what](modules[module])
        for module, what in seen
        if what in RECORDERS
    }
    passing = [*recorders.values()]
    weights = [*hosts.values()]
    before = [weight.requires_grad for weight in weights]
    by_weight = hosts_by_weight(aligning) if changes is None else []
    wanted = [hosts[path] for path in by_weight]
    total = [torch.zeros_like(weight) for weight in wanted]
    try:
        for weight in weights:
            weight.requires_grad_(True)
        given = False
        for loss in losses if wanted or passing else ():
            given = True
            if any(m.waiting for m in passing):
                raise _not_from_here("the model did not run for it")
            found = _gradients(loss, [*wanted, *(m.output for m in passing)])
            if wanted:
                torch._foreach_add_(total, found[: len(wanted)])
            for m, gradient in zip(passing, found[len(wanted) :], strict=True):
                m.add(gradient)
        if (wanted or passing) and not given:
            raise StructureError(
                "there was no loss to take directions and moments from",
                "give the losses of a few batches; a generator that was used up gives none",
            )
    finally:
        for m in passing:
            m.hook.remove()
        for weight, flag in zip(weights, before, strict=True):
            weight.requires_grad_(flag)
    if changes is None:
        changes = dict(zip(by_weight, total, strict=True))

    def basis(p: Position, kind: Kind) -> Basis:
        if (recorder := recorders.get((p.module, kind.statistics))) is not None:
            return recorder.basis(p)
        return kind.basis(p, weight_at(p, modules[p.module], changes[p.host]))

    kinds = {(p.name, split_bits(kind.name)[0]): (p, kind) for p, kind in aligning}
    return {name: basis(p, kind) for name, (p, kind) in kinds.items()}  # whatever the precision


def _gradients(loss: Tensor, sources: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Of one batch's loss.

    Raises:
        StructureError: If the loss is not finite, or was computed before it was asked for, or without a graph.
    """
    if not torch.isfinite(loss).all():
        raise StructureError(f"a loss is {loss.detach()}", "calibrate in float32")
    try:
        return torch.autograd.grad(loss, sources)
    except RuntimeError as error:
        if "graph" not in str(error) and "require grad" not in str(error):
            raise
        raise _not_from_here(str(error).splitlines()[0]) from error


def _not_from_here(why: str) -> StructureError:
    return StructureError(
        f"a loss does not lead to what is calibrated: {why}",
        "compute each loss as it is asked for, with gradients on: (model(**b).loss for b in batches)",
    )


def take_bases(model: nn.Module, bases: Bases) -> None:
    """Give attached, untrained units the frozen parts that were found for them; a mask ranks its weights anew."""
    attachment = attachment_of(model)
    for slot in attachment.slots if attachment is not None else []:
        basis = bases.get((slot.position.name, split_bits(slot.kind.name)[0]))
        if basis is not None:
            host = base_of(model).get_submodule(slot.position.module)
            masked = slot.kind.role == "mask"
            slot.unit.align(*basis, *((weight_at(slot.position, host),) if masked else ()))
