"""How attached units run inside a backbone's modules: by hooks; a module's own forward is never replaced."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from sparsearch.errors import StructureError
from sparsearch.spaces.attachment.attached_unit import AttachedUnit
from sparsearch.spaces.attachment.changed_weight import ChangedWeight
from sparsearch.spaces.attachment.elsewhere import is_elsewhere
from sparsearch.spaces.attachment.substitution import Substitution
from sparsearch.spaces.kinds.low_rank_product import add_low_rank

__all__ = ["Handle", "hook"]


class Handle(Protocol):
    """What a hook is removed by."""

    def remove(self) -> None:
        """The module as it was."""


def _running(slots: list[AttachedUnit]) -> Iterator[AttachedUnit]:
    return (slot for slot in slots if not slot.idle)


def _is_in_norm(slot: AttachedUnit) -> bool:
    """Whether a unit changes a norm's gain, or the bias that the norm has."""
    shifts = slot.unit.constant and slot.position.has_bias
    return slot.position.role == "norm" and (shifts or slot.unit.changes_gain)


def _add_together(
    y: Tensor, x: Tensor, thin: list[AttachedUnit], vectors: list[AttachedUnit]
) -> Tensor:
    """Low-rank units and vectors of one host in one go."""
    x = x if torch.is_autocast_enabled(x.device.type) else x.to(y.dtype)
    for slot in thin:
        slot.check_here()
    units = [slot.low_rank for slot in thin if slot.low_rank is not None]
    changes = [slot.run(x, slot.gate) for slot in vectors]
    return add_low_rank(y, x, units, [slot.gate for slot in thin], changes)


_CAST = "sparsearch_cast"


class _Cast(torch.autograd.Function):
    """X in another type, as it is known already: whatever runs on x shares one copy, and each has its own gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, known: Tensor) -> Tensor:
        ctx.dtype = x.dtype
        return known.view_as(known)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient.to(ctx.dtype), None


def _cast_once(x: Tensor) -> Tensor:
    """X as autocast's products take it; queries, keys and values, and units beside them, would each cast it anew."""
    if not torch.is_autocast_enabled(x.device.type) or x.dtype != torch.float32:
        return x
    if x.is_inference():  # has no version by which to know that it is still the same
        return x
    version, known = getattr(x, _CAST, (None, None))
    if known is None or version != x._version:
        known = x.detach().to(torch.get_autocast_dtype(x.device.type))
        setattr(x, _CAST, (x._version, known))
    return _Cast.apply(x, known)  # type: ignore[no-any-return,no-untyped-call]


class _Norm:
    """Units that change gain and bias of a norm, inside it: one norm, where adding their changes needs two.

    A norm in half precision then computes in float32: in bfloat16, a number times 1.001 is that number. Where types
    are mixed, or gain or units cannot be read before the norm's forward, the units run beside the norm.
    """

    def __init__(self, norm: nn.Module, slots: list[AttachedUnit]) -> None:
        self.norm, self.slots = norm, slots
        self.substitution = Substitution(norm, self._changed)
        self.widening = norm.register_forward_pre_hook(self._widen)

    @property
    def beside(self) -> list[AttachedUnit]:
        """The units that are still to be added to the output."""
        return [] if self.substitution.active else self.slots

    def _changed(self, x: Tensor) -> dict[str, Tensor]:
        """Gain and bias with their changes; nothing where the units run beside."""
        running, own = list(_running(self.slots)), self._own()
        wanted = {"bias" if slot.unit.constant else "weight" for slot in running} | {"weight"}
        if not running or any(slot.hooked for slot in running) or not wanted <= own.keys():
            return {}
        dtype = own["weight"].dtype
        half = dtype.itemsize < 4
        mixed = half and (x.dtype != dtype or torch.is_autocast_enabled(x.device.type))
        if mixed or any(is_elsewhere(tensor) for tensor in own.values()):
            return {}
        dtype = torch.float32 if half else dtype
        changed = {name: tensor.to(dtype) for name, tensor in own.items()}
        for slot in running:
            slot.check_here()
            name, change = slot.unit.in_norm(x, slot.gate)
            changed[name] = changed[name] + change
        return {name: tensor.to(dtype) for name, tensor in changed.items()}

    def _own(self) -> dict[str, Tensor]:
        """Gain and bias, also while others stand in their place."""
        own = {name: self.norm._parameters.get(name) for name in ("weight", "bias")}
        return {name: tensor for name, tensor in own.items() if tensor is not None}

    def _widen(self, module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        x = args[0]
        return (x.float(), *args[1:]) if x.dtype.itemsize < 4 and self._widens else None

    def narrowed(self, y: Tensor) -> Tensor:
        """The norm's output in the norm's own type."""
        return y.to(self._own()["weight"].dtype) if self._widens else y

    @property
    def _widens(self) -> bool:
        return self.substitution.active and self._own()["weight"].dtype.itemsize < 4

    def remove(self) -> None:
        """The module as it was."""
        self.substitution.remove()
        self.widening.remove()


class _Host:
    """The hooks of one backbone module: units of heads and inputs, cuts, parallel ones with masks, sequential ones."""

    def __init__(self) -> None:
        self.attending: list[AttachedUnit] = []
        self.asking: list[AttachedUnit] = []
        self.heads: list[AttachedUnit] = []
        self.before_units: list[AttachedUnit] = []
        self.cutting: list[AttachedUnit] = []
        self.capturing: list[AttachedUnit] = []
        self.parallel: list[AttachedUnit] = []
        self.masks: list[AttachedUnit] = []
        self.captured: list[AttachedUnit] = []
        self.sequential: list[AttachedUnit] = []
        self.norm: _Norm | None = None

    def before(self, module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        for slot in _running(self.capturing):
            slot.seen = args[0]
        x = args[0]
        for slot in _running(self.heads):
            x = slot.attend(x)
        start = x
        for slot in _running(self.before_units):
            x = x + slot.delta(start).to(x.dtype)
        for slot in _running(self.cutting):
            x = slot.run(x, slot.gate)
        if any(slot.low_rank is not None for slot in _running(self.parallel)):
            x = _cast_once(x)
        return None if x is args[0] else (x, *args[1:])

    def forget(self, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        """An attention begins: what an interrupted pass left is not for it."""
        for slot in self.attending:
            slot.seen = None

    def after(self, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        y = self.norm.narrowed(output) if self.norm else output
        beside = self.norm.beside if self.norm else []
        running = list(_running([*self.parallel, *beside]))
        whole = [slot for slot in running if y.shape[-1] == slot.width]
        thin = [s for s in whole if s.low_rank is not None and not s.hooked]
        if thin:
            vectors = [slot for slot in whole if slot.unit.constant]
            y = _add_together(y, args[0], thin, vectors)
            running = [slot for slot in running if slot not in (*thin, *vectors)]
        for slot in running:
            y = slot.add_to(y, args[0], *slot.seen_of(module, output))
        for slot in _running(self.captured):
            if slot.seen is None:
                raise StructureError(
                    f"{slot.position.name} ends in {slot.position.module}, which also runs outside it: layers share it",
                    "attach nothing that is parallel to it",
                )
            y = slot.add_to(y, slot.seen)
            slot.seen = None
        z = y
        for slot in _running(self.sequential):
            z = slot.add_to(z, slot.part_of(y))
        for slot in _running(self.asking):
            slot.see_queries(z)
        return z

    def hook(self, module: nn.Module) -> Iterator[Handle]:
        yield from self._change_weights(module)
        in_norm = [s for s in self.parallel if _is_in_norm(s)]
        self.parallel = [slot for slot in self.parallel if slot not in in_norm]
        if self.masks:
            masked = {slot.position.name for slot in self.masks}
            inside = [s for s in self.parallel if s.changes_weight and s.position.name in masked]
            self.parallel = [slot for slot in self.parallel if slot not in inside]
            yield ChangedWeight(module, self.masks, inside)
        thin = any(slot.low_rank is not None for slot in self.parallel)
        if self.attending:
            yield module.register_forward_pre_hook(self.forget)
        if self.heads or self.before_units or self.cutting or self.capturing or thin:
            yield module.register_forward_pre_hook(self.before)
        if self.parallel or in_norm or self.captured or self.sequential or self.asking:
            yield module.register_forward_hook(self.after)
        if in_norm:  # its hooks come after, which asks what was inside
            self.norm = _Norm(module, in_norm)
            yield self.norm

    def _change_weights(self, module: nn.Module) -> Iterator[Handle]:
        """Units of experts and routers, which change a weight and cannot run beside it."""
        own = [s for s in (*self.masks, *self.parallel) if s.position.in_weight]
        self.masks = [slot for slot in self.masks if slot not in own]
        self.parallel = [slot for slot in self.parallel if slot not in own]
        weights: dict[str, list[AttachedUnit]] = {}
        for slot in own:
            weights.setdefault(slot.position.parameter, []).append(slot)
        for slots in weights.values():
            masks = [slot for slot in slots if slot.mask is not None]
            yield ChangedWeight(module, masks, [slot for slot in slots if slot.mask is None])


def hook(modules: Mapping[str, nn.Module], slots: Iterable[AttachedUnit]) -> Iterator[Handle]:
    """Hook units into the backbone's modules, host by host."""
    hosts: dict[str, _Host] = {}
    for slot in slots:
        position, stage = slot.position, slot.kind.stage(slot.position)
        host = hosts.setdefault(position.module, _Host())
        if stage == "heads" and position.queries is not None:
            hosts.setdefault(position.queries.attention, _Host()).attending.append(slot)
            hosts.setdefault(position.queries.module, _Host()).asking.append(slot)
            host.heads.append(slot)
        elif stage == "input":
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
