"""Encoders of images: ViT and DINOv2."""

from __future__ import annotations

from dataclasses import replace

from sparsearch.spaces.families.family import Family, Stack

__all__ = [
    "DINOV2",
    "VIT",
]


def _layer(attention: str, output: str, norms: tuple[str, str]) -> dict[str, str]:
    """Names of a layer; its feed-forward is gated where it has a gate.

    Args:
        attention: Path of its attention.
        output: Name of the attention's output projection.
        norms: Paths of the norms before attention and feed-forward.
    """
    q, k, v, o = (f"{attention}.{part}" for part in ("q_proj", "k_proj", "v_proj", output))
    down = "mlp.fc2|mlp.down_proj"
    return {
        "attn": f"{q}>{o}",
        "attn.heads": f"{q},{k},{v}>>{o}",
        "attn.norm": norms[0],
        "attn.q": q,
        "attn.k": k,
        "attn.v": v,
        "attn.o": o,
        "ffn": f"mlp>{down}",
        "ffn.neurons": f"mlp.fc1,mlp.gate_proj,mlp.up_proj>>{down}",
        "ffn.norm": norms[1],
        "ffn.gate": "mlp.gate_proj",
        "ffn.up": "mlp.fc1|mlp.up_proj",
        "ffn.down": down,
    }


VIT = Family(
    stacks=(
        Stack(
            "", "layers", _layer("attention", "o_proj", ("layernorm_before", "layernorm_after"))
        ),
    ),
    outside={"norm": "layernorm"},
)

# What its layer scales multiply is reached before they do.
DINOV2 = replace(
    VIT,
    stacks=(Stack("", "encoder.layer", _layer("attention", "o_proj", ("norm1", "norm2"))),),
)
