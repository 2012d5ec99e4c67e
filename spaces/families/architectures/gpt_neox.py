"""GPT-NeoX with Pythia, BLOOM and Falcon: queries, keys and values are fused group by group."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from sparsearch.spaces.families.family import Family, Stack

__all__ = [
    "BLOOM",
    "FALCON",
    "GPT_NEOX",
]


def _paths(attention: str) -> dict[str, str]:
    """Names of a layer whose attention, of this path, fuses its projections."""
    fused = f"{attention}.query_key_value"
    return {
        "attn": f"{fused}>{attention}.dense",
        "attn.norm": "input_layernorm|ln_attn",
        "attn.q": f"{fused}[q per group]",
        "attn.k": f"{fused}[k per group]",
        "attn.v": f"{fused}[v per group]",
        "attn.o": f"{attention}.dense",
        "ffn": "mlp.dense_h_to_4h>mlp.dense_4h_to_h",
        "ffn.neurons": "mlp.dense_h_to_4h>>mlp.dense_4h_to_h",
        "ffn.norm": "post_attention_layernorm|ln_mlp",
        "ffn.up": "mlp.dense_h_to_4h",
        "ffn.down": "mlp.dense_4h_to_h",
    }


def _falcon_key_heads(config: Any) -> int:
    """Key heads, as ``FalconAttention`` reads them from its config."""
    if config.new_decoder_architecture or not config.multi_query:
        return int(config.num_kv_heads)
    return 1


_FUSED = "attention.query_key_value"

GPT_NEOX = Family(
    stacks=(
        Stack(
            "",
            "layers",
            _paths("attention")
            | {
                "attn.heads": f"{_FUSED}[q per group],{_FUSED}[k per group],{_FUSED}[v per group]"
                ">>attention.dense"
            },
        ),
    ),
    outside={"norm": "final_layer_norm"},
)

BLOOM = Family(
    stacks=(Stack("", "h", _paths("self_attention")),),
    outside={"embeddings.norm": "word_embeddings_layernorm", "norm": "ln_f"},
    lacks={"heads": "one position bias (alibi) is made for all heads of all layers"},
)

FALCON = replace(
    BLOOM,
    outside={"norm": "ln_f"},
    key_heads=_falcon_key_heads,
    lacks={
        "heads": "all heads share one key, or have one position bias (alibi) for all layers, or its attention "
        "counts query heads and key heads apart"
    },
)
