"""The budget equation: the shift of the global sigmoid that makes the expected cost equal the budget."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["shifted_logits", "solve_shift", "solve_tau"]

_HALVINGS = 64


def solve_shift(alpha: Tensor, cost: Tensor, budget: float | Tensor, beta: float = 1.0) -> Tensor:
    """Solve sum(cost * sigmoid((alpha - shift) / beta)) = budget for the shift (S3PET, eq. 8).

    The sum falls with the shift. With r = budget / sum(cost), every p is at least r at
    min(alpha) - beta logit(r) and at most r at max(alpha) - beta logit(r): a bracket that always
    holds the root. It is halved a fixed number of times, in float64, on alpha's device, without
    a host synchronisation.

    Args:
        alpha: (gates,) scores.
        cost: (gates,) positive costs.
        budget: From 0 to sum(cost); outside, the nearer end is taken.
        beta: Temperature of the sigmoid.

    Returns:
        The shift, a float64 scalar without gradient.

    Example:
        >>> shift = solve_shift(torch.tensor([0.0, 0.0]), torch.tensor([1.0, 3.0]), budget=2.0)
        >>> round(float(shift), 6)
        0.0
    """
    a = alpha.detach().double()
    c = cost.double()
    target = (budget / c.sum()).clamp(1e-300, 1 - 1e-16)
    offset = beta * (torch.log(target) - torch.log1p(-target))
    low, high = a.min() - offset, a.max() - offset
    weight = c / c.sum()
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        over = (weight * torch.sigmoid((a - middle) / beta)).sum() > target
        low, high = torch.where(over, middle, low), torch.where(over, high, middle)
    return (low + high) / 2


def shifted_logits(
    alpha: Tensor, cost: Tensor, budget: float | Tensor, beta: float = 1.0
) -> Tensor:
    """(alpha - shift) / beta with the exact implicit gradient of the shift.

    From sum(cost p) = budget: d shift / d alpha_j = cost_j p'_j / sum_i cost_i p'_i. The
    gradient of a loss through p is then p'_j (g_j - cost_j sum_i(g_i p'_i) / sum_i(cost_i p'_i))
    and keeps the expected cost fixed.

    Returns:
        (gates,) float64 logits of p.
    """
    shift = solve_shift(alpha, cost, budget, beta)
    a = alpha.double()
    u = (a.detach() - shift) / beta
    slope = cost.double() * torch.sigmoid(u) * torch.sigmoid(-u)
    share = slope / slope.sum().clamp_min(torch.finfo(torch.float64).tiny)
    moving = (share * a).sum()
    return (a - (shift + moving - moving.detach())) / beta


def solve_tau(alpha: Tensor, cost: Tensor, budget: float | Tensor) -> Tensor:
    """Smallest tau >= 1 for which p = theta softmax(alpha / tau) with sum(cost p) = budget has no p above 1.

    The largest p is budget / sum(cost exp((alpha - max alpha) / tau)), which falls with tau.

    Returns:
        tau, a float64 scalar without gradient (S3PET's tau-theta control).
    """
    a = alpha.detach().double()
    c = cost.double()
    gap = a - a.max()
    low, high = a.new_zeros(()), (1e12 * (1 + gap.abs().max())).log()
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        over = budget / (c * torch.exp(gap / middle.exp())).sum() > 1
        low, high = torch.where(over, middle, low), torch.where(over, high, middle)
    fits = budget / (c * torch.exp(gap)).sum() <= 1
    return torch.where(fits, torch.ones_like(high), high.exp())
