"""OPT, BART, and Whisper, whose layers are BART's."""

from __future__ import annotations

from dataclasses import replace

from sparsearch.spaces.families.family import Family, Stack

__all__ = [
    "BART",
    "OPT",
    "WHISPER",
]


def _attention(name: str, module: str) -> dict[str, str]:
    """Names of one attention."""
    return {
        name: f"{module}.q_proj>{module}.out_proj",
        f"{name}.heads": f"{module}.q_proj,{module}.k_proj,{module}.v_proj>>{module}.out_proj",
        f"{name}.norm": f"{module}_layer_norm",
        f"{name}.q": f"{module}.q_proj",
        f"{name}.k": f"{module}.k_proj",
        f"{name}.v": f"{module}.v_proj",
        f"{name}.o": f"{module}.out_proj",
    }


_FEED_FORWARD = {
    "ffn": "fc1>fc2",
    "ffn.neurons": "fc1>>fc2",
    "ffn.norm": "final_layer_norm",
    "ffn.up": "fc1",
    "ffn.down": "fc2",
}
_LAYER = _attention("attn", "self_attn") | _FEED_FORWARD
_COUNTERS = ("num_heads", "embed_dim")

OPT = Family(
    stacks=(Stack("", "decoder.layers", _LAYER),),
    outside={"norm": "decoder.final_layer_norm"},
    head_counters=_COUNTERS,
)

# mBART has a last norm in both stacks beside those of the embeddings.
BART = Family(
    stacks=(
        Stack("encoder.", "encoder.layers", _LAYER),
        Stack(
            "decoder.",
            "decoder.layers",
            _attention("attn", "self_attn") | _attention("cross", "encoder_attn") | _FEED_FORWARD,
        ),
    ),
    outside={
        "encoder.embeddings.norm": "encoder.layernorm_embedding",
        "decoder.embeddings.norm": "decoder.layernorm_embedding",
        "encoder.norm": "encoder.layer_norm",
        "decoder.norm": "decoder.layer_norm",
    },
    tokens=frozenset({"decoder_start_token_id"}),
    head_counters=_COUNTERS,
    rows_end=True,
)

# It pools nothing; convolutions make the frames that its encoder reads.
WHISPER = replace(BART, rows_end=False)
