"""ModernBERT."""

from __future__ import annotations

from sparsearch.spaces.families.family import Family, Stack

__all__ = [
    "MODERNBERT",
]

# The first layer has no norm before its attention.
MODERNBERT = Family(
    stacks=(
        Stack(
            "",
            "layers",
            {
                "attn": "attn.Wqkv>attn.Wo",
                "attn.heads": "attn.Wqkv[0/3],attn.Wqkv[1/3],attn.Wqkv[2/3]>>attn.Wo",
                "attn.norm": "attn_norm",
                "attn.q": "attn.Wqkv[0/3]",
                "attn.k": "attn.Wqkv[1/3]",
                "attn.v": "attn.Wqkv[2/3]",
                "attn.o": "attn.Wo",
                "ffn": "mlp.Wi>mlp.Wo",
                "ffn.neurons": "mlp.Wi[0/2],mlp.Wi[1/2]>>mlp.Wo",
                "ffn.norm": "mlp_norm",
                "ffn.gate": "mlp.Wi[0/2]",
                "ffn.up": "mlp.Wi[1/2]",
                "ffn.down": "mlp.Wo",
            },
        ),
    ),
    outside={"embeddings.norm": "embeddings.norm", "norm": "final_norm"},
)
