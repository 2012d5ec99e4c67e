"""OPT."""

from __future__ import annotations

from sparsearch.spaces.families.family import Family, Stack

__all__ = [
    "OPT",
]

OPT = Family(
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
    head_counters=("num_heads", "embed_dim"),
)
