"""DistilBERT."""

from __future__ import annotations

from sparsearch.spaces.families.family import Family, Stack

__all__ = [
    "DISTILBERT",
]

DISTILBERT = Family(
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
    head_counters=("n_heads", "dim"),
)
