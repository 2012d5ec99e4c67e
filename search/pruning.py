"""Fixed ways to share sparsity out over the matrices: the same everywhere, or by magnitude."""

from __future__ import annotations

from collections import Counter

import torch
from torch import Tensor, nn

from sparsearch.spaces.backbone import base_of
from sparsearch.spaces.positions import weight_at
from sparsearch.spaces.space import Space

__all__ = ["even", "magnitude"]


def even(space: Space) -> tuple[float, ...]:
    """Scores that give every position the same share of its rank units, heads or bands (PST: one density for all)."""
    totals = Counter((c.position, c.kind) for c in space.candidates)
    seen: Counter[tuple[str, str]] = Counter()
    scores = []
    for c in space.candidates:
        key = c.position, c.kind
        scores.append(-seen[key] / totals[key])
        seen[key] += 1
    return tuple(scores)


@torch.no_grad()
def magnitude(space: Space, model: nn.Module) -> tuple[float, ...]:
    """Scores by which the smallest weights of all matrices together go first: minus a band's median size.

    What is no band scores as in ``even``.
    """
    scores = list(even(space))
    for name, bands in space.bands.items():
        position = space.position(name)
        weight: Tensor = weight_at(position, base_of(model).get_submodule(position.module))
        sizes = weight.abs().flatten().sort().values
        for k, i in enumerate(bands):
            middle = (2 * k + 1) * space.candidates[i].pruned_weights // 2
            scores[i] = -float(sizes[min(middle, len(sizes) - 1)])
    return tuple(scores)
