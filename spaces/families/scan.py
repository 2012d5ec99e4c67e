"""Finds the positions of a model by its family's table."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from sparsearch.errors import BackboneError

if TYPE_CHECKING:
    from torch import nn
from sparsearch.spaces.families.family import Family
from sparsearch.spaces.families.position import Feed, Position, Role
from sparsearch.spaces.families.registry import FAMILIES

__all__ = [
    "scan",
]

_FUSED = re.compile(r"^(?P<path>.+)\[(?P<part>\d+)/(?P<parts>\d+)\]$")


def scan(base: nn.Module, model_type: str) -> tuple[Position, ...]:
    """Find every position of a backbone.

    Args:
        base: The base model (``model.base_model`` of a model with a head).
        model_type: ``config.model_type`` of the backbone.

    Returns:
        Positions, layer by layer, then those outside the layers.

    Raises:
        BackboneError: If the family is not in the table.
    """
    family = FAMILIES.get(model_type)
    if family is None:
        raise BackboneError(
            f"model family {model_type!r} is not supported; supported: {', '.join(sorted(FAMILIES))}",
            "choose a model of a supported family, or add one entry to the table in spaces/families/positions.py",
        )
    return tuple(_scan_family(family, dict(base.named_modules()), _head_width(base.config)))


def _head_width(config: Any) -> int:
    """Features of one head."""
    width = getattr(config, "d_kv", None) or getattr(config, "head_dim", None)
    return int(width or config.hidden_size // config.num_attention_heads)


def _scan_family(
    family: Family, modules: Mapping[str, nn.Module], head: int
) -> Iterator[Position]:
    for stack in family.stacks:
        layer = 0
        while f"{stack.layers}.{layer}" in modules:
            for suffix, path in stack.paths.items():
                name = f"{stack.prefix}layers.{layer}.{suffix}"
                below = f"{stack.layers}.{layer}."
                if ">>" in path:
                    yield _resolve_cut(name, path, below, layer, modules, head)
                elif position := _resolve(name, path, below, layer, modules):
                    yield position
            layer += 1
    for name, path in family.outside.items():
        if position := _resolve(name, path, "", None, modules):
            yield position


def _resolve_cut(
    name: str, path: str, prefix: str, layer: int, modules: Mapping[str, nn.Module], head: int
) -> Position:
    """A place that can be cut."""
    before, _, reader = path.partition(">>")
    linears = [_resolve(name, feed, prefix, layer, modules) for feed in before.split(",")]
    feeds = tuple(
        Feed(p.module, p.start, p.out_features, p.in_features, p.has_bias, ".pos_" not in p.module)
        for p in linears
        if p
    )
    width, out = _widths(modules[prefix + reader])
    role: Role = "heads" if name.endswith("heads") else "neurons"
    units = feeds[-1].rows // head if role == "heads" else width
    module = prefix + reader
    return Position(name, role, module, module, layer, width, out, units=units, feeds=feeds)


def _resolve(
    name: str, path: str, prefix: str, layer: int | None, modules: Mapping[str, nn.Module]
) -> Position | None:
    """Turn one entry of the table into a position, or None where the model lacks it."""
    entry, _, leave = path.rpartition(">")
    if entry:
        exit_module = modules.get(prefix + leave)
        if exit_module is None:
            return None
        _, width = _widths(exit_module)
        return Position(name, "block", prefix + leave, prefix + entry, layer, width, width)
    fused = _FUSED.match(path)
    part, parts = (int(fused["part"]), int(fused["parts"])) if fused else (0, 1)
    alternatives = (fused["path"] if fused else path).split("|")
    found = next((prefix + p for p in alternatives if prefix + p in modules), None)
    if found is None or getattr(modules[found], "weight", None) is None:
        return None
    width_in, width_out = _widths(modules[found])
    width_out //= parts
    role: Role = "norm" if name.endswith("norm") else "linear"
    has_bias = getattr(modules[found], "bias", None) is not None
    return Position(
        name, role, found, found, layer, width_in, width_out, part * width_out, has_bias
    )


def _widths(module: nn.Module) -> tuple[int, int]:
    """Input and output features of a linear (either orientation) or of a norm."""
    from transformers.pytorch_utils import Conv1D

    if isinstance(module, Conv1D):
        return int(module.nx), int(module.nf)
    if hasattr(module, "in_features"):
        return int(module.in_features), int(module.out_features)  # type: ignore[arg-type]
    width = int(module.get_parameter("weight").shape[0])
    return width, width
