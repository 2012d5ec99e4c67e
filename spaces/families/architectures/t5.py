"""T5 (FLAN too) and mT5."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from sparsearch.spaces.families.family import Family, Stack

if TYPE_CHECKING:
    from torch import nn

__all__ = [
    "T5",
]


def _t5_attention(name: str, layer: str, module: str) -> dict[str, str]:
    """Names of one T5 attention sub-layer."""
    return {
        name: f"{layer}.{module}.q>{layer}.{module}.o",
        f"{name}.heads": ",".join(f"{layer}.{module}.{p}" for p in "qkv")
        + f">>{layer}.{module}.o",
        f"{name}.norm": f"{layer}.layer_norm",
        **{f"{name}.{part}": f"{layer}.{module}.{part}" for part in "qkvo"},
    }


def _t5_feed_forward(layer: str) -> dict[str, str]:
    """Names of one T5 feed-forward sub-layer; v1.0 has ``wi``, v1.1 the gated ``wi_0``, ``wi_1``."""
    ffn = f"{layer}.DenseReluDense"
    return {
        "ffn": f"{ffn}>{ffn}.wo",
        "ffn.neurons": f"{ffn}.wi,{ffn}.wi_0,{ffn}.wi_1>>{ffn}.wo",
        "ffn.norm": f"{layer}.layer_norm",
        "ffn.gate": f"{ffn}.wi_0",
        "ffn.up": f"{ffn}.wi|{ffn}.wi_1",
        "ffn.down": f"{ffn}.wo",
    }


def _keep_heads(attention: nn.Module, kept: Sequence[int]) -> None:
    """The first layer makes the position bias of all layers' heads."""
    from sparsearch.spaces.families.architectures.t5_bias import keep_heads

    keep_heads(attention, kept)


T5 = Family(
    stacks=(
        Stack(
            "encoder.",
            "encoder.block",
            {**_t5_attention("attn", "layer.0", "SelfAttention"), **_t5_feed_forward("layer.1")},
        ),
        Stack(
            "decoder.",
            "decoder.block",
            {
                **_t5_attention("attn", "layer.0", "SelfAttention"),
                **_t5_attention("cross", "layer.1", "EncDecAttention"),
                **_t5_feed_forward("layer.2"),
            },
        ),
    ),
    outside={
        "encoder.norm": "encoder.final_layer_norm",
        "decoder.norm": "decoder.final_layer_norm",
    },
    tokens=frozenset({"decoder_start_token_id"}),
    head_counters=("n_heads", "inner_dim"),
    rows_end=True,
    keep_heads=_keep_heads,
)
