"""ALBERT: its layers share their weights, so that each position occurs once."""

from __future__ import annotations

from typing import Any

from sparsearch.spaces.families.family import Family, Stack

__all__ = [
    "ALBERT",
]


def _repeats(config: Any, group: int) -> int:
    """Layers that are of a group, as ``AlbertTransformer`` gives them to groups."""
    each = config.num_hidden_layers / config.num_hidden_groups
    return sum(int(layer / each) == group for layer in range(config.num_hidden_layers))


_INNER = "albert_layers.0"

ALBERT = Family(
    stacks=(
        Stack(
            "",
            "encoder.albert_layer_groups",
            {
                "attn": f"{_INNER}.attention.query>{_INNER}.attention.dense",
                "attn.heads": f"{_INNER}.attention.query,{_INNER}.attention.key,{_INNER}.attention.value"
                f">>{_INNER}.attention.dense",
                "attn.q": f"{_INNER}.attention.query",
                "attn.k": f"{_INNER}.attention.key",
                "attn.v": f"{_INNER}.attention.value",
                "attn.o": f"{_INNER}.attention.dense",
                "attn.norm": f"{_INNER}.attention.LayerNorm",
                "ffn": f"{_INNER}.ffn>{_INNER}.ffn_output",
                "ffn.neurons": f"{_INNER}.ffn>>{_INNER}.ffn_output",
                "ffn.up": f"{_INNER}.ffn",
                "ffn.down": f"{_INNER}.ffn_output",
                "ffn.norm": f"{_INNER}.full_layer_layer_norm",
            },
            repeats=_repeats,
        ),
    ),
    outside={
        "embeddings.norm": "embeddings.LayerNorm",
        "embeddings.projection": "encoder.embedding_hidden_mapping_in",
    },
    head_counters=("num_attention_heads", "all_head_size"),
)
