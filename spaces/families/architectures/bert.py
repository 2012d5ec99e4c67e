"""BERT and RoBERTa."""

from __future__ import annotations

from dataclasses import replace

from sparsearch.spaces.families.family import Family, Stack

__all__ = [
    "BERT",
    "ROBERTA",
]

BERT = Family(
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
    head_counters=("num_attention_heads", "all_head_size"),
)

# Position ids start behind the padding token.
ROBERTA = replace(BERT, tokens=frozenset({"pad_token_id"}))
