"""LLaMA, and the decoders that are built like it."""

from __future__ import annotations

from sparsearch.spaces.families.family import Family, Stack

__all__ = [
    "GEMMA2",
    "GEMMA3",
    "LLAMA",
    "OLMO2",
    "PHI3",
    "QWEN3",
    "STABLELM",
]

_BLOCK = {
    "attn": "self_attn.q_proj>self_attn.o_proj",
    "attn.heads": "self_attn.q_proj,self_attn.k_proj,self_attn.v_proj>>self_attn.o_proj",
    "attn.norm": "input_layernorm",
    "attn.q": "self_attn.q_proj",
    "attn.k": "self_attn.k_proj",
    "attn.v": "self_attn.v_proj",
    "attn.o": "self_attn.o_proj",
    "ffn": "mlp>mlp.down_proj",
    "ffn.neurons": "mlp.gate_proj,mlp.up_proj>>mlp.down_proj",
    "ffn.norm": "post_attention_layernorm",
    "ffn.gate": "mlp.gate_proj",
    "ffn.up": "mlp.up_proj",
    "ffn.down": "mlp.down_proj",
}
_QUERY_KEY_NORMS = {"attn.q.norm": "self_attn.q_norm", "attn.k.norm": "self_attn.k_norm"}
_SANDWICH_NORMS = {
    "attn.post.norm": "post_attention_layernorm",
    "ffn.norm": "pre_feedforward_layernorm",
    "ffn.post.norm": "post_feedforward_layernorm",
}


def _family(paths: dict[str, str]) -> Family:
    return Family(stacks=(Stack("", "layers", paths),), outside={"norm": "norm"})


def _without_heads(paths: dict[str, str]) -> dict[str, str]:
    return {name: path for name, path in paths.items() if name != "attn.heads"}


LLAMA = _family(_BLOCK)

QWEN3 = _family(_BLOCK | _QUERY_KEY_NORMS)

GEMMA2 = _family(_BLOCK | _SANDWICH_NORMS)

GEMMA3 = _family(_BLOCK | _SANDWICH_NORMS | _QUERY_KEY_NORMS)

# Its norms of queries and keys are over all heads together, so no head can go.
OLMO2 = _family(
    _without_heads(_BLOCK)
    | _QUERY_KEY_NORMS
    | {"attn.norm": "post_attention_layernorm", "ffn.norm": "post_feedforward_layernorm"}
)

# Its attention counts query heads and key heads apart.
STABLELM = _family(_without_heads(_BLOCK))

# Its attention takes the number of heads from the config.
PHI3 = _family(
    _without_heads(_BLOCK)
    | {
        "attn": "self_attn.qkv_proj>self_attn.o_proj",
        "attn.q": "self_attn.qkv_proj[q]",
        "attn.k": "self_attn.qkv_proj[k]",
        "attn.v": "self_attn.qkv_proj[v]",
        "ffn.neurons": "mlp.gate_up_proj[0/2],mlp.gate_up_proj[1/2]>>mlp.down_proj",
        "ffn.gate": "mlp.gate_up_proj[0/2]",
        "ffn.up": "mlp.gate_up_proj[1/2]",
    }
)
