"""Gemma 4 (text): layers that share keys and values, inputs of their own for each layer, and experts in some models."""

from __future__ import annotations

from dataclasses import replace

from sparsearch.spaces.families.architectures.experts.mixtral import EXPERTS_STAY_WIDE
from sparsearch.spaces.families.architectures.llama import GEMMA3
from sparsearch.spaces.families.family import Stack

__all__ = ["GEMMA4"]

GEMMA4 = replace(
    GEMMA3,
    norms_by_head=False,
    stacks=(
        Stack(
            "",
            "layers",
            {
                **{n: path for n, path in GEMMA3.stacks[0].paths.items() if n != "attn.heads"},
                "ffn.dense.norm": "post_feedforward_layernorm_1",
                "ffn.router": "router.proj",
                "ffn.experts.norm": "pre_feedforward_layernorm_2",
                "ffn.experts.post.norm": "post_feedforward_layernorm_2",
                "ffn.experts.*.gate": "experts@gate_up_proj[0/2]",
                "ffn.experts.*.up": "experts@gate_up_proj[1/2]",
                "ffn.experts.*.down": "experts@down_proj",
                "input.gate": "per_layer_input_gate",
                "input.up": "per_layer_projection",
                "input.norm": "post_per_layer_input_norm",
            },
            beside_first="embed_tokens_per_layer",
        ),
    ),
    outside={
        "inputs.linear": "per_layer_model_projection",
        "inputs.norm": "per_layer_projection_norm",
        "norm": "norm",
    },
    lacks={
        "heads": "layers share keys and values, and a full attention's heads are wider than a sliding one's",
        "keys and values of the last layers": "they take those of an earlier layer, and have no weights for them",
        "values of a full attention": "where the model takes its keys for values too, what is at `attn.k` changes both",
        "neurons of experts": EXPERTS_STAY_WIDE,
        "scales of a router": "they are no matrices by which a token is multiplied",
    },
)
