"""How attached units run inside a backbone's modules: hooks, or a module's forward taken over."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from sparsearch.spaces._masked import Masked
from sparsearch.spaces.slots import Slot
from sparsearch.spaces.units.base import LowRankUnit, add_low_rank
from sparsearch.spaces.units.lnfit import LNFitUnit

__all__ = ["Handle", "hook"]


class Handle(Protocol):
    """What a hook is removed by."""

    def remove(self) -> None:
        """The module as it was."""


def _running(slots: list[Slot]) -> Iterator[Slot]:
    return (slot for slot in slots if not slot.idle)


def _add_together(y: Tensor, x: Tensor, thin: list[Slot], vectors: list[Slot]) -> Tensor:
    """Low-rank units and vectors of one host in one go."""
    x = x if torch.is_autocast_enabled(x.device.type) else x.to(y.dtype)
    units = [slot.unit for slot in thin if isinstance(slot.unit, LowRankUnit)]
    changes = [slot.unit(x, slot.gate) for slot in vectors]
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
        gain, bias = gain.to(norm.weight.dtype), bias.to(norm.bias.dtype)
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
        for slot in _running(self.capturing):
            slot.seen = args[0]
        x = args[0]
        for slot in _running(self.before_units):
            x = x + slot.delta(args[0]).to(x.dtype)
        for slot in _running(self.cutting):
            x = slot.unit(x, slot.gate)
        if any(isinstance(slot.unit, LowRankUnit) for slot in _running(self.parallel)):
            x = _cast_once(x)
        return None if x is args[0] else (x, *args[1:])

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

    def hook(self, module: nn.Module) -> Iterator[Handle]:
        if isinstance(module, nn.LayerNorm) and module.bias is not None:
            inside = [s for s in self.parallel if s.unit.constant or isinstance(s.unit, LNFitUnit)]
            self.parallel = [slot for slot in self.parallel if slot not in inside]
            yield _Norm(module, inside)
        if self.masks:
            masked = {slot.position.name for slot in self.masks}
            inside = [s for s in self.parallel if s.changes_weight and s.position.name in masked]
            self.parallel = [slot for slot in self.parallel if slot not in inside]
            yield Masked(module, self.masks, inside)
        thin = any(isinstance(slot.unit, LowRankUnit) for slot in self.parallel)
        if self.before_units or self.cutting or self.capturing or thin:
            yield module.register_forward_pre_hook(self.before)
        if self.parallel or self.captured or self.sequential:
            yield module.register_forward_hook(self.after)


def hook(modules: Mapping[str, nn.Module], slots: Iterable[Slot]) -> Iterator[Handle]:
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
