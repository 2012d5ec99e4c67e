"""Mixtral, Qwen3-MoE and gpt-oss: decoders whose feed-forward layers choose among experts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from sparsearch.spaces.families.architectures.llama import LLAMA, QWEN3
from sparsearch.spaces.families.family import Family, Stack

if TYPE_CHECKING:
    from torch import nn

__all__ = ["EXPERTS", "EXPERTS_STAY_WIDE", "GPT_OSS", "MIXTRAL", "QWEN3_MOE"]

EXPERTS = {
    "ffn": "mlp>mlp",
    "ffn.router": "mlp.gate@weight",
    "ffn.experts.*.gate": "mlp.experts@gate_up_proj[0/2]",
    "ffn.experts.*.up": "mlp.experts@gate_up_proj[1/2]",
    "ffn.experts.*.down": "mlp.experts@down_proj",
}
"""Names in a layer of experts; a dense layer between such layers has none but the first."""

EXPERTS_STAY_WIDE = (
    "experts lie in one tensor, and must stay equally wide; dense layers beside them have neurons"
)


def _with(dense: Family, paths: dict[str, str]) -> Family:
    """A decoder like a dense one, with experts."""
    stack = dense.stacks[0]
    return replace(
        dense,
        stacks=(Stack("", stack.layers, {**stack.paths, **paths}),),
        lacks={"neurons": EXPERTS_STAY_WIDE},
    )


def _keep_sinks(attention: nn.Module, kept: Sequence[int]) -> None:
    """The sinks of the query heads that stay, which share a key group by group."""
    from torch import nn

    group, sinks = int(attention.num_key_value_groups), attention.get_parameter("sinks")  # type: ignore[arg-type]
    heads = [unit * group + head for unit in kept for head in range(group)]
    attention.sinks = nn.Parameter(sinks.detach()[heads], requires_grad=sinks.requires_grad)


MIXTRAL = _with(LLAMA, EXPERTS)

QWEN3_MOE = _with(QWEN3, EXPERTS)

GPT_OSS = replace(
    _with(
        LLAMA,
        {
            "ffn": "mlp.experts>mlp.experts",
            "ffn.router": "mlp.router@weight",
            "ffn.experts.*.gate": "mlp.experts@gate_up_proj.T[0::2]",
            "ffn.experts.*.up": "mlp.experts@gate_up_proj.T[1::2]",
            "ffn.experts.*.down": "mlp.experts@down_proj.T",
        },
    ),
    keep_heads=_keep_sinks,
)
