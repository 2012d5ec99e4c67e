"""Gates: one vector alpha, the probabilities that meet a budget, and relaxed samples of them."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from sparsearch.search.gates.mask_costs import MaskCosts
from sparsearch.search.gates.shift import shifted_logits, solve_shift, solve_tau

__all__ = [
    "Gates",
]

_EPS = 1e-12


_STRETCH = (-0.1, 1.1)


_NEVER = -30.0


class Gates(nn.Module):
    """One gate per candidate; three budgets have three shifts.

    What is cut has its own shift, which holds the expected FLOPs saved at ``to_save``. Bands of masks have theirs,
    which holds the expected weights that are zero or gone at ``to_prune``. What is attached is then priced by what
    is expected to be left of its position, under a budget from which the masks' scores are paid.

    Args:
        cost: (gates,) parameters of each candidate, positive, or 0 for what is cut.
        control: ``shift`` (global sigmoid, S3PET eq. 8), ``tau-theta`` (softmax), or ``l0`` (no
            budget, a penalty).
        gradient: ``exact`` implicit gradient of the shift, or S3PET's ``detach`` trick.
        relaxation: ``concrete`` (Maddison et al. 2017), ``hard-concrete`` (Louizos et al.
            2018), or ``none``: z = p.
        temperature: Of the relaxation.
        beta: Of the sigmoid.
        saving: (gates,) FLOPs that a cut saves, 0 for what is attached; None where nothing can be cut.
        overlap: (gates, gates) sparse: parameters that candidate i loses where j is cut.
        masks: Prices of masks; None where nothing can be masked.

    Attributes:
        to_save: Expected FLOPs saved, in the unit of ``saving``.
        to_prune: Expected weights that are zero or gone.
    """

    def __init__(
        self,
        cost: Tensor,
        *,
        control: str = "shift",
        gradient: str = "exact",
        relaxation: str = "concrete",
        temperature: float = 1.0,
        beta: float = 1.0,
        saving: Tensor | None = None,
        overlap: Tensor | None = None,
        masks: MaskCosts | None = None,
    ) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.zeros(cost.shape[0], device=cost.device))
        self.cost: Tensor
        self.register_buffer("cost", cost.double())
        self.control, self.gradient, self.relaxation = control, gradient, relaxation
        self.temperature, self.beta = temperature, beta
        self.to_save = self.to_prune = 0.0
        self.saving, self.overlap, self.masks = saving, overlap, masks
        removed = torch.zeros_like(cost, dtype=torch.bool)
        if saving is not None:
            self.cuts = saving.nonzero().flatten()
            removed[self.cuts] = True
        if masks is not None:
            removed[masks.bands] = True
        self.removes = bool(removed.any())
        self.attached = (~removed).nonzero().flatten()

    def logits(self, budget: float | Tensor) -> Tensor:
        """logit(p) of every gate, float64: (gates,)."""
        if not self.removes:
            return self._logits(self.alpha, self.cost, budget)
        alpha, attached = self.alpha, self.attached
        found = torch.full_like(alpha, _NEVER, dtype=torch.float64)
        if self.saving is not None and self.to_save > 0:
            cuts = self.cuts
            saved = shifted_logits(alpha[cuts], self.saving[cuts], self.to_save, self.beta)
            found = found.index_copy(0, cuts, saved)
        cost = self.expected_cost(torch.sigmoid(found.detach()))
        if self.masks is not None and self.to_prune > 0:
            found, paid = self._with_masks(found, cost, self.masks)
            budget = (budget - paid).clamp_min(_EPS)
        if len(attached):
            logits = self._logits(alpha[attached], cost[attached], budget)
            found = found.index_copy(0, attached, logits)
        return found

    def _with_masks(self, found: Tensor, cost: Tensor, masks: MaskCosts) -> tuple[Tensor, Tensor]:
        """Logits with those of bands in place, and the parameters of the scores of what they mask."""
        cut, bands = torch.sigmoid(found.detach()), masks.bands
        weights = masks.left(cut)[bands].clamp_min(_EPS)
        need = self.to_prune - masks.gone @ cut
        pruned = shifted_logits(self.alpha[bands], weights, need, self.beta)
        found = found.index_copy(0, bands, pruned)
        return found, masks.paid_once(torch.sigmoid(found.detach()), cost)

    def expected_cost(self, p: Tensor) -> Tensor:
        """Parameters of each candidate where cuts are made with probability p: (gates,)."""
        if self.overlap is None:
            return self.cost
        return (self.cost - self.overlap @ self.cut(p)).clamp_min(_EPS)

    def cut(self, p: Tensor) -> Tensor:
        """Probabilities of cuts, 0 for all else: (gates,)."""
        if self.saving is None:
            return torch.zeros_like(p)
        return torch.zeros_like(p).index_copy(0, self.cuts, p[self.cuts])

    def expected_params(self, p: Tensor) -> Tensor:
        """Trainable parameters at probabilities p, a scalar: the scores of a matrix count once."""
        cost = self.expected_cost(p)
        total = (cost[self.attached] * p[self.attached]).sum()
        return total if self.masks is None else total + self.masks.paid_once(p, cost)

    def _logits(self, alpha: Tensor, cost: Tensor, budget: float | Tensor) -> Tensor:
        """Those of gates under one budget."""
        if self.control == "l0":
            return alpha.double() / self.beta
        if self.control == "tau-theta":
            tau = solve_tau(alpha, cost, budget)
            share = torch.softmax(alpha.double() / tau, dim=0)
            p = budget * share / (cost * share).sum()
            return torch.logit(p, eps=_EPS)
        if self.gradient == "exact":
            return shifted_logits(alpha, cost, budget, self.beta)
        shift = solve_shift(alpha, cost, budget, self.beta)
        p = torch.sigmoid((alpha.double() - shift) / self.beta)
        total = p.sum()
        return torch.logit(p * (total.detach() / total), eps=_EPS)

    def probabilities(self, budget: float) -> Tensor:
        """P of every gate, float64; under ``shift`` and ``tau-theta`` sum(cost * p) equals the budget."""
        return torch.sigmoid(self.logits(budget))

    def noise(self, generator: torch.Generator) -> Tensor:
        """One draw of logistic noise, float64: (gates,); the generator lives on the CPU."""
        u = torch.rand(self.alpha.shape[0], generator=generator, dtype=torch.float64)
        u = u.clamp(_EPS, 1 - _EPS).to(self.alpha.device)
        return torch.log(u) - torch.log1p(-u)

    def sample(self, budget: float, noise: Tensor) -> Tensor:
        """Relaxed gates z in [0, 1], float32: (gates,)."""
        logits = self.logits(budget)
        if self.relaxation == "none":
            return torch.sigmoid(logits).float()
        s = torch.sigmoid((logits + noise) / self.temperature)
        if self.relaxation == "hard-concrete":
            low, high = _STRETCH
            s = (s * (high - low) + low).clamp(0, 1)
        return s.float()

    def penalty(self) -> Tensor:
        """Expected share of the space's cost that is on: P(z > 0) weighted by cost (L0 control).

        With a hard-concrete gate P(z > 0) = sigmoid(logit p - temperature log(-low / high));
        with the others it is p. Priced per parameter, where the published code counts gates and,
        with its defaults, adds a constant.
        """
        logits = self.alpha.double() / self.beta
        if self.relaxation == "hard-concrete":
            low, high = _STRETCH
            logits = logits - self.temperature * math.log(-low / high)
        attached, cost = self.attached, self.cost[self.attached]
        return (torch.sigmoid(logits[attached]) * cost).sum() / cost.sum().clamp_min(_EPS)
