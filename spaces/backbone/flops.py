"""FLOPs of a dense backbone."""

from __future__ import annotations

from fractions import Fraction

from sparsearch.spaces.families.position import MATRICES, Position

__all__ = [
    "dense_flops_per_token",
]


def dense_flops_per_token(positions: tuple[Position, ...], tokens: int) -> int:
    """Inference FLOPs (2 x MACs) per token of the dense layers at a sequence length.

    Linears cost 2 in out; scores and mixing 4 n d per attention (methods, section 0). Of experts those count that a
    token takes, whichever they are.
    Embeddings, norms, pooler and head are left out, DeBERTa's relative positions, and the convolution and the state
    of linear attention.

    Args:
        positions: The backbone's positions.
        tokens: Sequence length n.
    """
    total: int | Fraction = 0
    for position in positions:
        if position.role in MATRICES:
            flops = 2 * position.in_features * position.out_features
            if position.scored and position.name.endswith((".attn.q", ".cross.q")):
                flops += 4 * tokens * position.out_features
            total += position.repeats * flops
    return int(total)  # whole: a token takes a whole number of a layer's experts
