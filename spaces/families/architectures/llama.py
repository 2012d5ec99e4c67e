"""LLaMA."""

from __future__ import annotations

from sparsearch.spaces.families.family import Family, Stack

__all__ = [
    "LLAMA",
]

LLAMA = Family(
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
