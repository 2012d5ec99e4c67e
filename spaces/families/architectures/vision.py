"""Encoders of images: ViT and DINOv2; CLIP and SigLIP, each with a tower for text and one for images."""

from __future__ import annotations

from dataclasses import replace

from sparsearch.spaces.families.family import Family, Stack

__all__ = [
    "CLIP",
    "CLIP_TEXT",
    "CLIP_VISION",
    "DINOV2",
    "SIGLIP",
    "SIGLIP_TEXT",
    "SIGLIP_VISION",
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


def _tower(name: str, **outside: str) -> Family:
    """A tower as a model of its own: its positions have the names that they have beside the other tower."""
    paths = _layer("self_attn", "out_proj", ("layer_norm1", "layer_norm2"))
    return Family(
        stacks=(Stack(f"{name}.", "encoder.layers", paths),),
        outside={f"{name}.{part.replace('_', '.')}": path for part, path in outside.items()},
    )


def _both(text: Family, vision: Family) -> Family:
    """Both towers in one model."""
    towers = {"text": text, "vision": vision}
    return Family(
        stacks=tuple(
            replace(stack, layers=f"{name}_model.{stack.layers}", config=f"{name}_config")
            for name, tower in towers.items()
            for stack in tower.stacks
        ),
        outside={
            position: f"{name}_model.{path}"
            for name, tower in towers.items()
            for position, path in tower.outside.items()
        },
        aside={
            f"{name}_model.{path}": why
            for name, tower in towers.items()
            for path, why in tower.aside.items()
        }
        | dict.fromkeys(("text_projection", "visual_projection"), _POOLED),
    )


_POOLED = "it reads one pooled vector a row, as a pooler does"
_UNREAD = "of the pooled vector, which a classifier of images does not read"

CLIP_TEXT = replace(_tower("text", norm="final_layer_norm"), tokens=frozenset({"eos_token_id"}))
CLIP_VISION = replace(
    _tower("vision", embeddings_norm="pre_layrnorm"), aside={"post_layernorm": _UNREAD}
)
CLIP = _both(CLIP_TEXT, CLIP_VISION)

SIGLIP_TEXT = replace(_tower("text", norm="final_layer_norm"), aside={"head": _POOLED})
SIGLIP_VISION = replace(_tower("vision", norm="post_layernorm"), aside={"head": _UNREAD})
SIGLIP = _both(SIGLIP_TEXT, SIGLIP_VISION)
