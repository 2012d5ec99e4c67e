"""Finds the positions of a model by its family's table."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn
from sparsearch.spaces.families.family import Family
from sparsearch.spaces.families.generic import guess_positions
from sparsearch.spaces.families.position import Feed, Position, Queries, Role, widths
from sparsearch.spaces.families.registry import FAMILIES

__all__ = [
    "scan",
]

_PART = re.compile(r"^(?P<path>.+)\[(?P<part>[^\]]+)\]$")
_PARAMETER = re.compile(
    r"^(?P<module>[^@]+)@(?P<parameter>\w+)(?P<transposed>\.T)?(?:\[(?P<part>[^\]]+)\])?$"
)
_EXPERTS_PER_TOKEN = ("num_experts_per_tok", "top_k_experts")


@dataclass(frozen=True)
class _Heads:
    """The heads of a model's attentions.

    Attributes:
        width: Features of one head.
        group: Query heads that share a key.
    """

    width: int
    group: int


@dataclass(frozen=True)
class _Layer:
    """Where the paths of a table are looked up.

    Attributes:
        family: Whose table it is.
        modules: Of the whole base model.
        config: Of the model.
        prefix: Path of the layer, with its point; "" outside the layers.
        index: Of the layer; None outside the layers.
        repeats: How often the layer runs.
    """

    family: Family
    modules: Mapping[str, nn.Module]
    config: Any
    prefix: str = ""
    index: int | None = None
    repeats: int = 1

    @property
    def heads(self) -> _Heads:
        """The heads of its attentions; for families whose layers have all the same."""
        return _heads_of(self.family, self.config)


@dataclass(frozen=True)
class _Part:
    """Output features of a fused projection, with the names that a position gives them."""

    out_features: int
    start: int = 0
    runs: int = 1
    period: int = 0


def scan(base: nn.Module, model_type: str) -> tuple[Position, ...]:
    """Find every position of a backbone.

    Args:
        base: The base model (``model.base_model`` of a model with a head).
        model_type: ``config.model_type`` of the backbone.

    Returns:
        Positions, layer by layer, then those outside the layers; of a family that is not in the table those that
        ``guess_positions`` finds.

    Raises:
        BackboneError: If the family is not in the table, and nothing can be guessed either.
    """
    family = FAMILIES.get(model_type)
    if family is None:
        return guess_positions(base, model_type)
    return tuple(_scan_family(family, dict(base.named_modules()), base.config))


def _heads_of(family: Family, config: Any) -> _Heads:
    heads = int(config.num_attention_heads)
    width = getattr(config, "d_kv", None) or getattr(config, "head_dim", None)
    keys = getattr(config, "num_key_value_heads", None) or heads
    keys = family.key_heads(config) if family.key_heads is not None else keys
    return _Heads(int(width or config.hidden_size // heads), heads // keys)


def _scan_family(
    family: Family, modules: Mapping[str, nn.Module], config: Any
) -> Iterator[Position]:
    for stack in family.stacks:
        own = getattr(config, stack.config) if stack.config else config
        number = 0
        while f"{stack.layers}.{number}" in modules:
            repeats = stack.repeats(own, number) if stack.repeats is not None else 1
            prefix = f"{stack.layers}.{number}."
            layer = _Layer(family, modules, own, prefix, number, repeats)
            found = {
                p.name: p
                for suffix, path in stack.paths.items()
                for p in _positions(f"{stack.prefix}layers.{number}.{suffix}", path, layer)
            }
            for p in found.values():
                yield replace(p, queries=_queries(p, found, layer)) if p.role == "block" else p
            number += 1
    for name, path in family.outside.items():
        yield from _positions(name, path, _Layer(family, modules, config))


def _positions(name: str, path: str, layer: _Layer) -> Iterator[Position]:
    """What one entry of the table names in a model: nothing where the model lacks it, several where it is experts'."""
    alternatives = path.split("|")
    if len({">" in alternative for alternative in alternatives}) > 1:
        alternatives = [path]  # of an end of a block or a cut, not of the whole
    for alternative in alternatives:
        if "@" in alternative:
            found = [*_resolve_parameter(name, alternative, layer)]
        else:
            found = [p for p in (_resolve(name, alternative, layer),) if p is not None]
        if found:
            yield from found
            return


def _resolve(name: str, path: str, layer: _Layer) -> Position | None:
    """Turn one entry of the table into a position, or None where the model lacks it."""
    if ">>" in path:
        return _resolve_cut(name, path, layer)
    if ">" in path:
        return _resolve_block(name, path, layer)
    fused = _PART.match(path)
    found = _first(fused["path"] if fused else path, layer)
    if found is None or getattr(layer.modules[found], "weight", None) is None:
        return None
    recurrent = layer.family.recurrent
    width_in, width_out = widths(layer.modules[found])
    part = _part(fused["part"], width_out, layer) if fused else _Part(width_out)
    return Position(
        name,
        role="norm" if name.endswith("norm") else "linear",
        module=found,
        entry=found,
        layer=layer.index,
        in_features=width_in,
        has_bias=getattr(layer.modules[found], "bias", None) is not None,
        repeats=layer.repeats,
        out_features=part.out_features,
        start=part.start,
        runs=part.runs,
        period=part.period,
        scored=not recurrent or not found.startswith(f"{layer.prefix}{recurrent}."),
    )


def _first(path: str, layer: _Layer) -> str | None:
    """The first of a path's alternatives that the model has, under the base model."""
    paths = [layer.prefix + alternative for alternative in path.split("|")]
    return next((path for path in paths if path in layer.modules), None)


def _resolve_parameter(name: str, path: str, layer: _Layer) -> Iterator[Position]:
    """The matrices of a parameter by which its module multiplies in its own way: those of experts, or one."""
    found = _PARAMETER.match(path)
    assert found is not None, path
    module, parameter = layer.prefix + found["module"], found["parameter"]
    own = layer.modules[module]._parameters.get(parameter) if module in layer.modules else None
    if own is None:
        return
    experts = range(len(own)) if "*" in name else (None,)
    width_out, width_in = own.shape[-2:] if not found["transposed"] else own.shape[:-3:-1]
    part = _part(found["part"], width_out, layer) if found["part"] else _Part(width_out)
    bias = "bias" if parameter == "weight" else f"{parameter}_bias"
    repeats: int | Fraction = layer.repeats
    if "*" in name:
        repeats *= Fraction(_experts_per_token(layer.config), len(own))
    for expert in experts:
        yield Position(
            name if expert is None else name.replace("*", str(expert)),
            role="router" if expert is None else "expert",
            module=module,
            entry=module,
            layer=layer.index,
            in_features=width_in,
            out_features=part.out_features,
            start=part.start,
            has_bias=getattr(layer.modules[module], bias, None) is not None,
            runs=part.runs,
            period=part.period,
            repeats=repeats,
            parameter=parameter,
            expert=expert,
            transposed=found["transposed"] is not None,
        )


def _experts_per_token(config: Any) -> int:
    """How many experts of a layer a token takes."""
    return int(next(n for name in _EXPERTS_PER_TOKEN if (n := getattr(config, name, None))))


def _part(part: str, width: int, layer: _Layer) -> _Part:
    """Where in a fused projection a part lies.

    Args:
        part: As the table writes it, between the brackets.
        width: Output features of the whole projection.
        layer: In which it is.
    """
    first, colons, step = part.partition("::")
    if colons:
        each = width // int(step)
        return _Part(each, int(first), runs=each, period=int(step))
    layout, colon, of_layout = part.partition(":")
    if colon:
        sizes, i = layer.family.layouts[layout](layer.config), int(of_layout)
        runs = width // sum(sizes)
        return _Part(runs * sizes[i], sum(sizes[:i]), runs, sum(sizes) if runs > 1 else 0)
    number, slash, parts = part.partition("/")
    if slash:
        each = width // int(parts)
        return _Part(each, int(number) * each)
    heads = layer.heads
    name, _, grouped = part.partition(" ")
    groups = width // ((heads.group + 2) * heads.width)
    runs = groups if grouped else 1
    key = groups * heads.width // runs  # features of the keys in one run
    start = {"q": 0, "k": heads.group * key, "v": (heads.group + 1) * key}[name]
    out_features = runs * key * (heads.group if name == "q" else 1)
    return _Part(out_features, start, runs, (heads.group + 2) * key if runs > 1 else 0)


def _resolve_block(name: str, path: str, layer: _Layer) -> Position | None:
    """A block, which is entered at one module and left at another."""
    entry, leave = (_first(part, layer) for part in path.split(">"))
    if entry is None or leave is None:
        return None
    whole = entry == leave
    width = int(layer.config.hidden_size) if whole else widths(layer.modules[leave])[1]
    return Position(name, "block", leave, entry, layer.index, width, width, repeats=layer.repeats)


def _queries(block: Position, found: Mapping[str, Position], layer: _Layer) -> Queries | None:
    """The queries of a block that is an attention; None elsewhere, and where they are scored with no keys.

    Args:
        block: Of the layer.
        found: All positions of the layer, by name.
        layer: In which they are.
    """
    linear, reader = (found.get(f"{block.name}.{part}") for part in "qo")
    if linear is None or reader is None or not linear.scored:
        return None
    if reader.in_features != linear.out_features:
        return None
    attention = linear.module.rpartition(".")[0]
    width = _head_width(attention, layer)
    heads, keys = linear.out_features // width, found.get(f"{block.name}.k")
    if keys is not None:
        key_heads = keys.out_features // width
    else:  # those of another layer
        key_heads = heads // int(getattr(layer.modules[attention], "num_key_value_groups", 1))
    last = found.get(f"{block.name}.q.norm", linear)
    return Queries(
        last.module,
        attention,
        last.start,
        last.runs,
        heads,
        key_heads,
        width,
        layer.family.norms_by_head and last is not linear,
    )


def _head_width(attention: str, layer: _Layer) -> int:
    """Features of one head of the attention at a path."""
    return int(getattr(layer.modules[attention], "head_dim", 0) or layer.heads.width)


def _resolve_cut(name: str, path: str, layer: _Layer) -> Position | None:
    """A place that can be cut."""
    before, _, reader = path.partition(">>")
    module = _first(reader, layer)
    if module is None:
        return None
    linears = [_resolve(name, feed, layer) for feed in before.split(",")]
    feeds = tuple(
        Feed(
            p.module,
            p.start,
            p.out_features,
            p.in_features,
            p.has_bias,
            per_token=".pos_" not in p.module,
            runs=p.runs,
            period=p.period,
        )
        for p in linears
        if p
    )
    width, out = widths(layer.modules[module])
    role: Role = "heads" if name.endswith("heads") else "neurons"
    units = width
    if role == "heads":
        units = feeds[-1].rows // _head_width(feeds[0].module.rpartition(".")[0], layer)
    return Position(
        name,
        role,
        module,
        module,
        layer.index,
        width,
        out,
        units=units,
        feeds=feeds,
        repeats=layer.repeats,
    )
