"""LLaMA, and the decoders that are built like it."""

from __future__ import annotations

from dataclasses import replace

from sparsearch.spaces.families.family import Family, Stack

__all__ = [
    "GEMMA2",
    "GEMMA3",
    "LLAMA",
    "OLMO",
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


def _family(paths: dict[str, str], **lacks: str) -> Family:
    """A decoder of layers with these paths, without those of roles that it lacks."""
    own = {name: path for name, path in paths.items() if name.rpartition(".")[2] not in lacks}
    return Family(stacks=(Stack("", "layers", own),), outside={"norm": "norm"}, lacks=lacks)


LLAMA = _family(_BLOCK)

QWEN3 = _family(_BLOCK | _QUERY_KEY_NORMS)

GEMMA2 = _family(_BLOCK | _SANDWICH_NORMS)

GEMMA3 = replace(_family(_BLOCK | _SANDWICH_NORMS | _QUERY_KEY_NORMS), norms_by_head=True)

OLMO = _family(_BLOCK, norm="its norms have no weights")

OLMO2 = _family(
    _BLOCK
    | _QUERY_KEY_NORMS
    | {"attn.norm": "post_attention_layernorm", "ffn.norm": "post_feedforward_layernorm"},
    heads="its norms of queries and keys span all heads",
)

STABLELM = _family(_BLOCK, heads="its attention counts query heads and key heads apart")

PHI3 = _family(
    _BLOCK
    | {
        "attn": "self_attn.qkv_proj>self_attn.o_proj",
        "attn.q": "self_attn.qkv_proj[q]",
        "attn.k": "self_attn.qkv_proj[k]",
        "attn.v": "self_attn.qkv_proj[v]",
        "ffn.neurons": "mlp.gate_up_proj[0/2],mlp.gate_up_proj[1/2]>>mlp.down_proj",
        "ffn.gate": "mlp.gate_up_proj[0/2]",
        "ffn.up": "mlp.gate_up_proj[1/2]",
    },
    heads="its attention takes the number of heads from the config",
)
