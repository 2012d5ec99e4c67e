"""DeBERTa v2 and v3."""

from __future__ import annotations

from sparsearch.spaces.families.family import Family, Stack

__all__ = [
    "DEBERTA_V2",
]

# The linears of queries and keys project relative positions too (where these have linears of their own, they
# feed heads but are no positions), so a block is entered at the values.
DEBERTA_V2 = Family(
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
    head_counters=("num_attention_heads", "all_head_size"),
)
