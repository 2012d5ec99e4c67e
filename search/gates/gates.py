"""Gates: one vector alpha, the probabilities that meet a budget, and relaxed samples of them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sparsearch.search.gates.mask_costs import MaskCosts
from sparsearch.search.gates.shift import shifted_logits, solve_shift, solve_tau
from sparsearch.search.gates.targets import Targets

__all__ = ["GateSettings", "Gates", "RemovalCosts"]

_EPS = 1e-12


_STRETCH = (-0.1, 1.1)


_NEVER = -30.0


@dataclass(frozen=True)
class GateSettings:
    """How alpha becomes gates.

    Attributes:
        control: ``shift`` (global sigmoid, S3PET eq. 8), ``tau-theta`` (softmax), or ``l0`` (no budget, a penalty).
        gradient: ``exact`` implicit gradient of the shift, or S3PET's ``detach`` trick.
        relaxation: ``concrete`` (Maddison et al. 2017), ``hard-concrete`` (Louizos et al. 2018), or ``none``: z = p.
        temperature: Of the relaxation, at the start.
        beta: Of the sigmoid.
    """

    control: str = "shift"
    gradient: str = "exact"
    relaxation: str = "concrete"
    temperature: float = 1.0
    beta: float = 1.0


@dataclass(frozen=True)
class RemovalCosts:
    """What removing heads and neurons saves.

    Attributes:
        saving: (gates,) FLOPs per token that a removal saves, 0 for what is attached or masked.
        overlap: (gates, gates) sparse: parameters that candidate i loses where j is removed.
    """

    saving: Tensor
    overlap: Tensor


class Gates(nn.Module):
    """One gate per candidate; three targets have three shifts.

    Removals have their own shift, which holds the expected FLOPs saved. Bands of masks have theirs, which holds the
    expected weights that are zero or gone. What is attached is then priced by what is expected to be left of its
    position, under a number of parameters from which the masks' scores are paid.

    Args:
        cost: (gates,) parameters of each candidate, positive, or 0 for removals.
        settings: How alpha becomes gates.
        removals: What removals save; None where nothing can be removed.
        masks: What masks cost; None where nothing can be masked.
    """

    def __init__(
        self,
        cost: Tensor,
        settings: GateSettings = GateSettings(),
        removals: RemovalCosts | None = None,
        masks: MaskCosts | None = None,
    ) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.zeros(cost.shape[0], device=cost.device))
        self.cost: Tensor
        self.register_buffer("cost", cost.double())
        self.control, self.gradient = settings.control, settings.gradient
        self.relaxation, self.temperature = settings.relaxation, settings.temperature
        self.beta = settings.beta
        self.removals, self.masks = removals, masks
        not_attached = torch.zeros_like(cost, dtype=torch.bool)
        if removals is not None:
            self.removed = removals.saving.nonzero().flatten()
            not_attached[self.removed] = True
        if masks is not None:
            not_attached[masks.bands] = True
        self.attaches_alone = not bool(not_attached.any())
        self.attached = (~not_attached).nonzero().flatten()

    def logits(self, targets: Targets) -> Tensor:
        """logit(p) of every gate, float64: (gates,)."""
        params: float | Tensor = targets.params
        if self.attaches_alone:
            return self._logits(self.alpha, self.cost, params)
        alpha, attached = self.alpha, self.attached
        logits = torch.full_like(alpha, _NEVER, dtype=torch.float64)
        if self.removals is not None and targets.flops_saved > 0:
            at, saving = self.removed, self.removals.saving
            saved = shifted_logits(alpha[at], saving[at], targets.flops_saved, self.beta)
            logits = logits.index_copy(0, at, saved)
        cost = self.expected_cost(torch.sigmoid(logits.detach()))
        if self.masks is not None and targets.weights_removed > 0:
            logits = self._with_masks(logits, self.masks, targets.weights_removed)
            paid = self.masks.paid_once(torch.sigmoid(logits.detach()), cost)
            params = (params - paid).clamp_min(_EPS)
        if len(attached):
            of_attached = self._logits(alpha[attached], cost[attached], params)
            logits = logits.index_copy(0, attached, of_attached)
        return logits

    def _with_masks(self, logits: Tensor, masks: MaskCosts, weights_removed: float) -> Tensor:
        """Logits with those of bands in place."""
        p, bands = torch.sigmoid(logits.detach()), masks.bands
        weights = masks.left(p)[bands].clamp_min(_EPS)
        need = weights_removed - masks.gone @ p
        pruned = shifted_logits(self.alpha[bands], weights, need, self.beta)
        return logits.index_copy(0, bands, pruned)

    def expected_cost(self, p: Tensor) -> Tensor:
        """Parameters of each candidate where removals have probability p: (gates,)."""
        if self.removals is None:
            return self.cost
        return (self.cost - self.removals.overlap @ self.removal_probabilities(p)).clamp_min(_EPS)

    def removal_probabilities(self, p: Tensor) -> Tensor:
        """Probabilities of removals, 0 for all else: (gates,)."""
        if self.removals is None:
            return torch.zeros_like(p)
        return torch.zeros_like(p).index_copy(0, self.removed, p[self.removed])

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

    def probabilities(self, targets: Targets) -> Tensor:
        """P of every gate, float64; under ``shift`` and ``tau-theta`` sum(cost * p) equals the parameters aimed at."""
        return torch.sigmoid(self.logits(targets))

    def noise(self, generator: torch.Generator) -> Tensor:
        """One draw of logistic noise, float64: (gates,); the generator lives on the CPU."""
        u = torch.rand(self.alpha.shape[0], generator=generator, dtype=torch.float64)
        u = u.clamp(_EPS, 1 - _EPS).to(self.alpha.device)
        return torch.log(u) - torch.log1p(-u)

    def sample(self, targets: Targets, noise: Tensor) -> Tensor:
        """Relaxed gates z in [0, 1], float32: (gates,)."""
        logits = self.logits(targets)
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
