"""BERT, RoBERTa, ELECTRA and MPNet."""

from __future__ import annotations

from dataclasses import replace

from sparsearch.spaces.families.family import Family, Stack

__all__ = [
    "BERT",
    "ELECTRA",
    "MPNET",
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

# Small ones have narrower embeddings.
ELECTRA = replace(BERT, outside={**BERT.outside, "embeddings.projection": "embeddings_project"})

MPNET = replace(
    ROBERTA,
    lacks={"heads": "its encoder makes one position bias for all heads of all layers"},
    stacks=(
        Stack(
            "",
            "encoder.layer",
            {
                "attn": "attention.attn.q>attention.attn.o",
                "attn.q": "attention.attn.q",
                "attn.k": "attention.attn.k",
                "attn.v": "attention.attn.v",
                "attn.o": "attention.attn.o",
                "attn.norm": "attention.LayerNorm",
                **{n: p for n, p in BERT.stacks[0].paths.items() if n.startswith("ffn")},
            },
        ),
    ),
)
