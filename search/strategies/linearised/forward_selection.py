"""Forward selection of groups of columns in a ridge regression, by the drop of held-out loss per cost."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["LeastSquares", "forward_selection"]

_LEAST = 1e-4
"""Share of the largest drop below which a drop of held-out loss counts as none."""


@dataclass(frozen=True)
class LeastSquares:
    """All that a least-squares problem needs of its rows: their mean squared error is a function of these two.

    Attributes:
        gram: (columns, columns) J^T J / rows, in float64.
        target: (columns,) J^T r / rows.
    """

    gram: Tensor
    target: Tensor


def forward_selection(
    fit: LeastSquares, held_out: LeastSquares, costs: Tensor, ridge: float
) -> tuple[list[int], list[float]]:
    """Groups of columns in the order of what they add to those before them, per cost.

    Each step adds the group whose ridge fit, together with all groups before it, lowers the squared error on the
    held-out rows most per cost. Block elimination keeps every step exact: it leaves, of the columns that remain, what
    the selected ones do not explain. Once no group lowers the held-out error, the rest follows by that same drop.

    Args:
        fit: Of the rows that coefficients are fitted on; groups are consecutive columns, all of one width.
        held_out: Of the rows that judge.
        costs: (groups,) positive.
        ridge: Penalty of a coefficient's square, as a multiple of the mean squared norm of a column.

    Returns:
        All groups in their order; and the drop of held-out error that each one selected brought, in the same order.

    Source: Efroymson (1960) for the selection; Yuan and Lin (2006) for groups.

    >>> copies = torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 1.0]], dtype=torch.float64)
    >>> problem = LeastSquares(copies, torch.tensor([1.0, 1.0, 0.5], dtype=torch.float64))
    >>> forward_selection(problem, problem, torch.ones(3), ridge=1e-6)[0]
    [0, 2, 1]
    """
    groups = len(costs)
    costs = costs.to(fit.target)
    width = len(fit.target) // groups
    most = ridge * fit.gram.diagonal().mean() + torch.finfo(fit.gram.dtype).tiny
    a, b = fit.gram.clone(), fit.target.clone()
    a.diagonal().add_(most)
    h, c = held_out.gram.clone(), held_out.target.clone()
    left = torch.ones(groups, dtype=torch.bool, device=a.device)
    order: list[int] = []
    drops: list[float] = []
    while True:
        drop = _drops(a, b, h, c, groups)
        drop[~left] = -torch.inf
        found = drop > _LEAST * max(drops, default=0.0)
        if not found.any():
            break
        chosen = int((drop / costs).where(found, -torch.inf).argmax())
        order.append(chosen)
        drops.append(float(drop[chosen]))
        left[chosen] = False
        _eliminate(a, b, h, c, slice(chosen * width, (chosen + 1) * width))
    worth = torch.where(drop > 0, drop / costs, drop)
    rest = worth.argsort(descending=True, stable=True)[: groups - len(order)]
    return order + rest.tolist(), drops


def _drops(a: Tensor, b: Tensor, h: Tensor, c: Tensor, groups: int) -> Tensor:
    """(groups,) by how much the held-out error falls with each group alone added."""
    own_a, own_h = _blocks(a, groups), _blocks(h, groups)
    coefficients = torch.linalg.solve(own_a, b.view(groups, -1, 1))
    linear = (coefficients.squeeze(-1) * c.view(groups, -1)).sum(1)
    square = (coefficients.mT @ own_h @ coefficients).flatten()
    drops: Tensor = 2 * linear - square
    return drops


def _blocks(x: Tensor, groups: int) -> Tensor:
    """The (groups, width, width) blocks on the diagonal."""
    width = len(x) // groups
    return x.view(groups, width, groups, width).diagonal(dim1=0, dim2=2).permute(2, 0, 1)


def _eliminate(a: Tensor, b: Tensor, h: Tensor, c: Tensor, own: slice) -> None:
    """Select the columns ``own``: the others become, in place, what these leave of them in the ridge fit."""
    weights = torch.linalg.solve(a[own, own], a[own])
    coefficients = torch.linalg.solve(a[own, own], b[own])
    beside, within = h[:, own].clone(), h[own, own].clone()
    c -= beside @ coefficients
    c -= weights.T @ c[own].clone()
    b -= a[:, own] @ coefficients
    # Matrices this large take the time of reading and writing them: each is changed once, in place.
    left = torch.cat([beside, weights.T], dim=1)
    h.addmm_(left, torch.cat([weights, beside.T - within @ weights]), alpha=-1)
    a.addmm_(a[:, own].clone(), weights, alpha=-1)
    a[own, own] += torch.eye(
        len(coefficients), dtype=a.dtype, device=a.device
    )  # selected: solvable, and unused
