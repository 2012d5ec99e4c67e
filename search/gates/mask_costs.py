"""What masks are expected to cost under their gates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sparsearch.spaces.costs import linear_weights, narrowed_positions, overlaps
from sparsearch.spaces.space import Space

__all__ = [
    "MaskCosts",
    "mask_costs",
]


@dataclass(frozen=True)
class MaskCosts:
    """What gates of bands prune and cost.

    Attributes:
        weights: (gates,) weights that a band prunes, 0 for all else.
        gone: (gates,) weights that are gone with a head or a block of neurons, 0 for all else.
        overlap: (gates, gates) sparse: weights that band i no longer has to prune where j is cut.
        bands: (bands,) the gates of bands.
        matrix: (bands,) number of each one's matrix.
        first: (matrices,) the gate of each one's first band.
    """

    weights: Tensor
    gone: Tensor
    overlap: Tensor
    bands: Tensor
    matrix: Tensor
    first: Tensor

    def left(self, cut: Tensor) -> Tensor:
        """Weights that each band prunes where cuts are made with such probability: (gates,)."""
        return (self.weights - self.overlap @ cut).clamp_min(0.0)

    def expected(self, p: Tensor, cut: Tensor) -> Tensor:
        """Weights that are zero or gone: masks with probability p, cuts with ``cut``, 0 for all else in either."""
        return (self.left(cut) * p).sum() + self.gone @ cut

    def paid_once(self, p: Tensor, cost: Tensor) -> Tensor:
        """Expected parameters of scores at gates p, (gates,): a matrix pays once if any of its bands goes.

        Args:
            p: (gates,) probabilities.
            cost: (gates,) parameters of each band's matrix.
        """
        untouched = p.new_ones(len(self.first))
        untouched = untouched.scatter_reduce(0, self.matrix, 1 - p[self.bands], "prod")
        return (cost[self.first] * (1 - untouched)).sum()


def mask_costs(space: Space, device: torch.device) -> MaskCosts | None:
    """Prices of a space's masks; None where it has none."""
    if not space.bands:
        return None
    n = len(space.candidates)
    dense = linear_weights(space.positions)
    gone = [
        dense - linear_weights(narrowed_positions(space.positions, [c])) if c.which else 0
        for c in space.candidates
    ]
    rows = torch.tensor([[i, j, w] for i, j, _, w in overlaps(space) if w], dtype=torch.float64)
    rows = rows.reshape(-1, 3)
    groups = list(space.bands.values())

    def column(values: Sequence[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.float64, device=device)

    def indices(values: Sequence[int]) -> Tensor:
        return torch.tensor(values, device=device)

    return MaskCosts(
        weights=column([c.pruned_weights for c in space.candidates]),
        gone=column(gone),
        overlap=torch.sparse_coo_tensor(
            rows[:, :2].T.long(), rows[:, 2], (n, n), check_invariants=True
        ).to(device),
        bands=indices([i for group in groups for i in group]),
        matrix=indices([k for k, group in enumerate(groups) for _ in group]),
        first=indices([group[0] for group in groups]),
    )
