"""Layers that keep their input alone for the backward pass, and run again there."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from sparsearch.errors import BackboneError
from sparsearch.search.training.device import frozen_cast_once
from sparsearch.spaces.attachment.attachment import attachment_of

__all__ = ["prepared"]


@contextlib.contextmanager
def prepared(model: nn.Module, precision: str, recompute: bool) -> Iterator[None]:
    """A model as its steps want it: frozen matrices cast once, or layers that are recomputed and cast each time.

    Args:
        model: With what trains attached.
        precision: Of the passes.
        recompute: Whether memory matters more than time.

    Raises:
        BackboneError: If no layer of the model can be recomputed.
    """
    if not recompute:
        with frozen_cast_once(model, precision):
            yield
        return
    layers = [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer)]
    if not layers:
        raise BackboneError(
            f"no layer of a {type(model).__name__} can be recomputed",
            "set train.checkpointing: false",
        )
    config: Any = model.config.get_text_config()  # type: ignore[operator, union-attr]
    caches = vars(config).get("use_cache")
    with contextlib.ExitStack() as stack:
        if caches is not None:  # a layer that runs twice would write its keys twice
            config.use_cache = False
            stack.callback(setattr, config, "use_cache", caches)
        for layer in layers:
            stack.enter_context(_recomputed(model, layer))
        yield


@contextlib.contextmanager
def _recomputed(model: nn.Module, layer: nn.Module) -> Iterator[None]:
    """Transformers checkpoints layers in training mode alone: this one is, while it runs, without its dropout."""
    before: list[dict[str, Any]] = []

    def enter(module: nn.Module, args: object) -> None:
        settings = vars(module)
        off = {} if module.training else {n: 0.0 for n, v in settings.items() if _is_rate(n, v)}
        changed = {"training": torch.is_grad_enabled(), **off} if not module.training else {}
        before.append({name: settings[name] for name in changed})
        settings.update(changed)

    def leave(module: nn.Module, args: object, output: object) -> None:
        vars(module).update(before.pop())

    own = {n: vars(layer)[n] for n in _MARKS if n in vars(layer)}
    handles = [
        layer.register_forward_pre_hook(enter),
        layer.register_forward_hook(leave, always_call=True),
    ]
    layer.gradient_checkpointing, layer._gradient_checkpointing_func = True, _as_it_was(model)  # type: ignore[assignment]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        for name in _MARKS:
            vars(layer).pop(name, None)
        vars(layer).update(own)


_MARKS = ("gradient_checkpointing", "_gradient_checkpointing_func")


def _is_rate(name: str, value: object) -> bool:
    return "drop" in name and isinstance(value, float)


def _as_it_was(model: nn.Module) -> Callable[..., Any]:
    """A checkpoint that runs again under the gates and the attention kernel of its first run."""

    def run(function: Callable[..., Any], *args: Any, **named: Any) -> Any:
        attachment = attachment_of(model)
        slots = attachment.slots if attachment is not None else []
        config: Any = model.config
        gates, kernel = [slot.gate for slot in slots], config._attn_implementation

        def again(*args: Any, **named: Any) -> Any:
            now, now_kernel = [slot.gate for slot in slots], config._attn_implementation
            _set(slots, gates, config, kernel)
            try:
                return function(*args, **named)
            finally:
                _set(slots, now, config, now_kernel)

        return checkpoint(again, *args, use_reentrant=False, **named)

    return run


def _set(slots: Any, gates: Any, config: Any, kernel: str) -> None:
    for slot, gate in zip(slots, gates, strict=True):
        slot.gate = gate
    if config._attn_implementation != kernel:
        config._attn_implementation = kernel
