"""GPT-2."""

from __future__ import annotations

from sparsearch.spaces.families.family import Family, Stack

__all__ = [
    "GPT2",
]

GPT2 = Family(
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
    head_counters=("num_heads", "split_size"),
)
