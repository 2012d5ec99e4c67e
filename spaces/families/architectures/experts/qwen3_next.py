"""Qwen3-Next: most layers have linear attention (a gated delta rule), every fourth an attention with an output gate."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from sparsearch.spaces.families.architectures.experts.mixtral import EXPERTS_STAY_WIDE, QWEN3_MOE
from sparsearch.spaces.families.family import Stack

__all__ = ["QWEN3_NEXT"]

_QUERY, _GATE = "self_attn.q_proj[query_gate:0]", "self_attn.q_proj[query_gate:1]"
_FUSED, _RATES = "linear_attn.in_proj_qkvz", "linear_attn.in_proj_ba"
_SHARED = "mlp.shared_expert"


def _query_gate(config: Any) -> tuple[int, ...]:
    """A head's query, and its output gate."""
    return config.head_dim, config.head_dim


def _qkvz(config: Any) -> tuple[int, ...]:
    """A key head's query and key; values and output gates of the value heads that share it."""
    shared = config.linear_num_value_heads // config.linear_num_key_heads
    values = shared * config.linear_value_head_dim
    return config.linear_key_head_dim, config.linear_key_head_dim, values, values


def _rates(config: Any) -> tuple[int, ...]:
    """Writing strength and decay of the value heads that share a key head."""
    shared = config.linear_num_value_heads // config.linear_num_key_heads
    return shared, shared


QWEN3_NEXT = replace(
    QWEN3_MOE,
    stacks=(
        Stack(
            "",
            "layers",
            {
                **QWEN3_MOE.stacks[0].paths,
                "attn": f"self_attn.q_proj>self_attn.o_proj|{_FUSED}>linear_attn.out_proj",
                "attn.heads": f"{_QUERY},{_GATE},self_attn.k_proj,self_attn.v_proj>>self_attn.o_proj",
                "attn.q": f"{_QUERY}|{_FUSED}[qkvz:0]",
                "attn.k": f"self_attn.k_proj|{_FUSED}[qkvz:1]",
                "attn.v": f"self_attn.v_proj|{_FUSED}[qkvz:2]",
                "attn.gate": f"{_GATE}|{_FUSED}[qkvz:3]",
                "attn.beta": f"{_RATES}[rates:0]",
                "attn.decay": f"{_RATES}[rates:1]",
                "attn.o": "self_attn.o_proj|linear_attn.out_proj",
                "ffn.shared.router": "mlp.shared_expert_gate",
                "ffn.shared.neurons": f"{_SHARED}.gate_proj,{_SHARED}.up_proj>>{_SHARED}.down_proj",
                "ffn.shared.gate": f"{_SHARED}.gate_proj",
                "ffn.shared.up": f"{_SHARED}.up_proj",
                "ffn.shared.down": f"{_SHARED}.down_proj",
            },
        ),
    ),
    layouts={"query_gate": _query_gate, "qkvz": _qkvz, "rates": _rates},
    recurrent="linear_attn",
    lacks={
        "neurons of experts": EXPERTS_STAY_WIDE,
        "prefix in linear attention": "it has no softmax over keys; full attention has one",
        "heads of linear attention": "it takes its heads from the config, and one convolution spans them",
        "norm in linear attention": "a gate multiplies what it puts out",
        "convolution, decay and step of linear attention": "they are no matrices by which a token is multiplied",
    },
)
