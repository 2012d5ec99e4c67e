"""Positions: the one table that maps canonical names to modules of each model family.

A canonical name says what a place *does*: ``layers.3.attn.q``, ``layers.3.ffn.down``, for
encoder-decoders ``decoder.layers.3.cross.v``. Outside this file nothing matches strings against
module names.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, Literal

from sparsearch.errors import BackboneError, StructureError

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["FAMILIES", "Feed", "Position", "find", "matching", "scan", "weight_at"]

Role = Literal["linear", "norm", "block", "heads", "neurons"]


@dataclass(frozen=True)
class Feed:
    """A linear, or a slice of a fused one, whose outputs are the units of a place that can be cut.

    Attributes:
        module: Path under the base model.
        start: First output feature inside a fused projection.
        rows: Output features.
        in_features: Width of its input.
        has_bias: Whether its outputs have a bias.
        per_token: Whether it runs on every token, not on relative positions alone (DeBERTa-v2).
    """

    module: str
    start: int
    rows: int
    in_features: int
    has_bias: bool
    per_token: bool = True


@dataclass(frozen=True)
class Position:
    """One place in a backbone where something can be attached or cut.

    A place that can be cut (heads, neurons) lies between linears that feed it and one that reads it.

    Attributes:
        name: Canonical name, unique in a backbone.
        role: ``linear``, ``norm``, ``block`` (a whole attention or feed-forward sub-layer), or what can
            be cut: ``heads``, ``neurons``.
        module: Path, under the base model, of the module whose output is changed.
        entry: Path of the module whose input is the position's input (differs for blocks only).
        layer: Index of the layer, None outside the layers.
        in_features: Width of the input.
        out_features: Width of the output (of the slice, in a fused projection).
        start: First output feature inside a fused projection.
        has_bias: Whether the module has a bias of its own.
        units: What can be cut one by one: heads (with grouped queries, groups that share keys), or neurons.
        feeds: The linears whose outputs they are; ``module`` is the one that reads them.
    """

    name: str
    role: Role
    module: str
    entry: str
    layer: int | None
    in_features: int
    out_features: int
    start: int = 0
    has_bias: bool = False
    units: int = 0
    feeds: tuple[Feed, ...] = ()


@dataclass(frozen=True)
class Stack:
    """A stack of equal layers: canonical prefix, path of the list, canonical suffix -> path.

    ``beside_first`` is the path of a module that runs beside whichever layer is the first, "" if none is.
    """

    prefix: str
    layers: str
    places: Mapping[str, str]
    beside_first: str = ""


@dataclass(frozen=True)
class Family:
    """Where one architecture keeps its layers, and what lies outside them.

    ``tokens`` names the special tokens of the config that change what the model computes.
    """

    stacks: tuple[Stack, ...]
    outside: Mapping[str, str]
    tokens: frozenset[str] = frozenset()


# How a path is written: "a.b" a module; "a|b" the first of two that exists; "a[1/3]" the second
# third of a fused projection's outputs; "a>b" a block that is entered at a and left at b; "a,b>>c"
# what a and b compute and c reads, unit by unit. A path that a model lacks (a gate in an ungated
# feed-forward), or a norm without weights, is no position of that model.
_BERT = Family(
    stacks=(
        Stack(
            "",
            "encoder.layer",
            {
                "attn": "attention.self.query>attention.output.dense",
                "attn.heads": "attention.self.query,attention.self.key,attention.self.value>>attention.output.dense",
                "attn.q": "attention.self.query",
                "attn.k": "attention.self.key",
                "attn.v": "attention.self.value",
                "attn.o": "attention.output.dense",
                "attn.norm": "attention.output.LayerNorm",
                "ffn": "intermediate.dense>output.dense",
                "ffn.neurons": "intermediate.dense>>output.dense",
                "ffn.up": "intermediate.dense",
                "ffn.down": "output.dense",
                "ffn.norm": "output.LayerNorm",
            },
        ),
    ),
    outside={"embeddings.norm": "embeddings.LayerNorm"},
)
# The linears of queries and keys project relative positions too (where these have linears of their own, they
# feed heads but are no positions), so a block is entered at the values.
_DEBERTA_V2 = Family(
    stacks=(
        Stack(
            "",
            "encoder.layer",
            {
                "attn": "attention.self.value_proj>attention.output.dense",
                "attn.heads": "attention.self.query_proj,attention.self.key_proj,attention.self.value_proj,"
                "attention.self.pos_key_proj,attention.self.pos_query_proj>>attention.output.dense",
                "attn.q": "attention.self.query_proj",
                "attn.k": "attention.self.key_proj",
                "attn.v": "attention.self.value_proj",
                "attn.o": "attention.output.dense",
                "attn.norm": "attention.output.LayerNorm",
                "ffn": "intermediate.dense>output.dense",
                "ffn.neurons": "intermediate.dense>>output.dense",
                "ffn.up": "intermediate.dense",
                "ffn.down": "output.dense",
                "ffn.norm": "output.LayerNorm",
            },
            beside_first="encoder.conv",
        ),
    ),
    outside={
        "embeddings.norm": "embeddings.LayerNorm",
        "embeddings.relative.norm": "encoder.LayerNorm",
        "conv.norm": "encoder.conv.LayerNorm",
    },
)
_DISTILBERT = Family(
    stacks=(
        Stack(
            "",
            "transformer.layer",
            {
                "attn": "attention.q_lin>attention.out_lin",
                "attn.heads": "attention.q_lin,attention.k_lin,attention.v_lin>>attention.out_lin",
                "attn.q": "attention.q_lin",
                "attn.k": "attention.k_lin",
                "attn.v": "attention.v_lin",
                "attn.o": "attention.out_lin",
                "attn.norm": "sa_layer_norm",
                "ffn": "ffn.lin1>ffn.lin2",
                "ffn.neurons": "ffn.lin1>>ffn.lin2",
                "ffn.up": "ffn.lin1",
                "ffn.down": "ffn.lin2",
                "ffn.norm": "output_layer_norm",
            },
        ),
    ),
    outside={"embeddings.norm": "embeddings.LayerNorm"},
)
_GPT2 = Family(
    stacks=(
        Stack(
            "",
            "h",
            {
                "attn": "attn.c_attn>attn.c_proj",
                "attn.heads": "attn.c_attn[0/3],attn.c_attn[1/3],attn.c_attn[2/3]>>attn.c_proj",
                "attn.norm": "ln_1",
                "attn.q": "attn.c_attn[0/3]",
                "attn.k": "attn.c_attn[1/3]",
                "attn.v": "attn.c_attn[2/3]",
                "attn.o": "attn.c_proj",
                "ffn": "mlp.c_fc>mlp.c_proj",
                "ffn.neurons": "mlp.c_fc>>mlp.c_proj",
                "ffn.norm": "ln_2",
                "ffn.up": "mlp.c_fc",
                "ffn.down": "mlp.c_proj",
            },
        ),
    ),
    outside={"norm": "ln_f"},
)
_LLAMA = Family(
    stacks=(
        Stack(
            "",
            "layers",
            {
                "attn": "self_attn.q_proj>self_attn.o_proj",
                "attn.heads": "self_attn.q_proj,self_attn.k_proj,self_attn.v_proj>>self_attn.o_proj",
                "attn.norm": "input_layernorm",
                "attn.q": "self_attn.q_proj",
                "attn.k": "self_attn.k_proj",
                "attn.v": "self_attn.v_proj",
                "attn.o": "self_attn.o_proj",
                "ffn": "mlp>mlp.down_proj",
                "ffn.neurons": "mlp.gate_proj,mlp.up_proj>>mlp.down_proj",
                "ffn.norm": "post_attention_layernorm",
                "ffn.gate": "mlp.gate_proj",
                "ffn.up": "mlp.up_proj",
                "ffn.down": "mlp.down_proj",
            },
        ),
    ),
    outside={"norm": "norm"},
)

_OPT = Family(
    stacks=(
        Stack(
            "",
            "decoder.layers",
            {
                "attn": "self_attn.q_proj>self_attn.out_proj",
                "attn.heads": "self_attn.q_proj,self_attn.k_proj,self_attn.v_proj>>self_attn.out_proj",
                "attn.norm": "self_attn_layer_norm",
                "attn.q": "self_attn.q_proj",
                "attn.k": "self_attn.k_proj",
                "attn.v": "self_attn.v_proj",
                "attn.o": "self_attn.out_proj",
                "ffn": "fc1>fc2",
                "ffn.neurons": "fc1>>fc2",
                "ffn.norm": "final_layer_norm",
                "ffn.up": "fc1",
                "ffn.down": "fc2",
            },
        ),
    ),
    outside={"norm": "decoder.final_layer_norm"},
)


def _t5_attention(name: str, layer: str, module: str) -> dict[str, str]:
    """Names of one T5 attention sub-layer."""
    return {
        name: f"{layer}.{module}.q>{layer}.{module}.o",
        f"{name}.heads": ",".join(f"{layer}.{module}.{p}" for p in "qkv")
        + f">>{layer}.{module}.o",
        f"{name}.norm": f"{layer}.layer_norm",
        **{f"{name}.{part}": f"{layer}.{module}.{part}" for part in "qkvo"},
    }


def _t5_feed_forward(layer: str) -> dict[str, str]:
    """Names of one T5 feed-forward sub-layer; v1.0 has ``wi``, v1.1 the gated ``wi_0``, ``wi_1``."""
    ffn = f"{layer}.DenseReluDense"
    return {
        "ffn": f"{ffn}>{ffn}.wo",
        "ffn.neurons": f"{ffn}.wi,{ffn}.wi_0,{ffn}.wi_1>>{ffn}.wo",
        "ffn.norm": f"{layer}.layer_norm",
        "ffn.gate": f"{ffn}.wi_0",
        "ffn.up": f"{ffn}.wi|{ffn}.wi_1",
        "ffn.down": f"{ffn}.wo",
    }


_T5 = Family(
    stacks=(
        Stack(
            "encoder.",
            "encoder.block",
            {**_t5_attention("attn", "layer.0", "SelfAttention"), **_t5_feed_forward("layer.1")},
        ),
        Stack(
            "decoder.",
            "decoder.block",
            {
                **_t5_attention("attn", "layer.0", "SelfAttention"),
                **_t5_attention("cross", "layer.1", "EncDecAttention"),
                **_t5_feed_forward("layer.2"),
            },
        ),
    ),
    outside={
        "encoder.norm": "encoder.final_layer_norm",
        "decoder.norm": "decoder.final_layer_norm",
    },
    tokens=frozenset({"decoder_start_token_id"}),
)

FAMILIES: Mapping[str, Family] = {
    "bert": _BERT,
    "deberta-v2": _DEBERTA_V2,
    "distilbert": _DISTILBERT,
    "gpt2": _GPT2,
    "llama": _LLAMA,
    "opt": _OPT,
    "roberta": replace(_BERT, tokens=frozenset({"pad_token_id"})),  # its position ids start behind
    "t5": _T5,
}

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
            "choose a model of a supported family, or add one entry to the table in spaces/positions.py",
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
            for suffix, path in stack.places.items():
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


def weight_at(position: Position, host: nn.Module, weight: Tensor | None = None) -> Tensor:
    """The position's part of its module's weight, or of a tensor of that shape, as (out, in)."""
    from transformers.pytorch_utils import Conv1D

    whole = host.get_parameter("weight") if weight is None else weight
    rows = whole.T if isinstance(host, Conv1D) else whole
    return rows[position.start : position.start + position.out_features]


def matching(positions: Sequence[Position], patterns: Sequence[str]) -> tuple[Position, ...]:
    """Positions whose name matches one of the glob patterns, in the order of the backbone."""
    return tuple(p for p in positions if any(fnmatchcase(p.name, pattern) for pattern in patterns))


def find(positions: Sequence[Position], name: str) -> Position:
    """The position of that name.

    Raises:
        StructureError: If there is none; the message lists the nearest names.
    """
    for position in positions:
        if position.name == name:
            return position
    near = difflib.get_close_matches(name, [p.name for p in positions], n=3)
    raise StructureError(
        f"the backbone has no position {name!r}",
        f"did you mean {' or '.join(near)}?" if near else "`sparsearch space MODEL` lists them",
    )
