"""Learning rates, their schedule, and the guard against NaN."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from sparsearch.config.study import TrainConfig
from sparsearch.errors import TrainingDiverged
from sparsearch.spaces.attachment.attachment import attachment_of
from sparsearch.spaces.kinds.precision import split_bits

__all__ = [
    "ClippedAdamW",
    "NanGuard",
    "learning_rates",
    "linear_schedule",
    "rate_of_each",
    "rates_of",
]

_CHECK_EVERY = 20


def linear_schedule(optimizer: torch.optim.Optimizer, steps: int, warmup: float) -> LambdaLR:
    """Up from 0 during the warm-up share of the steps, then linearly down to 0."""
    rising = math.ceil(steps * warmup)

    def factor(step: int) -> float:
        if step < rising:
            return (step + 1) / rising
        return max(0.0, (steps - step) / max(1, steps - rising))

    return LambdaLR(optimizer, factor)


def learning_rates(
    model: nn.Module, lr: float, kind_lr: Mapping[str, float]
) -> list[dict[str, Any]]:
    """Optimiser groups of everything trainable: one per kind of attached module, one for the rest.

    A learning rate per kind, because a bias and a scaled low-rank factor want rates an order of
    magnitude apart.

    Args:
        model: With or without something attached.
        lr: Where ``kind_lr`` says nothing.
        kind_lr: Kind, or ``head``, -> rate.
    """
    groups: dict[str, list[nn.Parameter]] = {}
    seen: set[int] = set()
    for kind, parameter in _attached(model):
        groups.setdefault(kind, []).append(parameter)
        seen.add(id(parameter))
    rest = [p for p in model.parameters() if p.requires_grad and id(p) not in seen]
    return [
        {"params": parameters, "lr": kind_lr.get(kind, lr)}
        for kind, parameters in [*groups.items(), ("head", rest)]
        if parameters
    ]


def rates_of(model: nn.Module, config: TrainConfig, *, whole: bool) -> list[dict[str, Any]]:
    """Optimiser groups at the rates of a study: one for a whole model, else one per kind of attached module."""
    if whole:
        return learning_rates(model, config.full_lr, {})
    return learning_rates(model, config.lr, config.kind_lr)


def rate_of_each(model: nn.Module, config: TrainConfig) -> dict[Tensor, float]:
    """The rate of each trainable parameter beside a frozen backbone."""
    groups = rates_of(model, config, whole=False)
    return {parameter: group["lr"] for group in groups for parameter in group["params"]}


def _attached(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    attachment = attachment_of(model)
    for name, unit in attachment.units.items() if attachment is not None else ():
        for parameter in unit.parameters():
            yield split_bits(name.rpartition(":")[2])[0], parameter


class ClippedAdamW(torch.optim.AdamW):
    """AdamW with update clipping: a step is shortened where gradients outgrow what they have been.

    AdamW divides by a mean over the last thousand gradients. Where these grow faster, as they do when a task is
    learnt at last, its steps are far longer than the rate says, and a training can collapse in a few of them. Here
    the rate of a group is divided by RMS = sqrt(mean(g^2 / v)) where that is above 1, with v the debiased mean of
    squares, this gradient among them. Entries that never had a gradient do not count.

    Source: StableAdamW (Wortsman et al. 2023, algorithm 2), after Adafactor (Shazeer and Stern 2018, section 6). There
    each tensor has an RMS of its own, here a group has: all modules of a kind. Nothing waits for the device.
    """

    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """One step at the clipped rates; ``group["lr"]`` is then as it was."""
        loss = None
        if closure is not None:  # it makes the gradients that the rates depend on
            with torch.enable_grad():
                loss = closure()
        rates = [group["lr"] for group in self.param_groups]
        try:
            for group in self.param_groups:
                group["lr"] = group["lr"] / self._excess(group)
            super().step()
        finally:
            for group, rate in zip(self.param_groups, rates, strict=True):
                group["lr"] = rate
        return loss

    @torch.no_grad()
    def _excess(self, group: dict[str, Any]) -> Tensor | float:
        """How many times too long a step of a group would be; at least 1."""
        seen = [p for p in group["params"] if p.grad is not None and self.state.get(p)]
        if not seen:  # in its first step RMS is 1
            return 1.0
        squares = torch.cat([p.grad.flatten() for p in seen]).float().square_()
        before = torch.cat([self.state[p]["exp_avg_sq"].flatten() for p in seen]).float()
        decay = group["betas"][1]
        mean = before.lerp_(squares, 1 - decay)
        steps = torch.stack([self.state[p]["step"] for p in seen]).to(mean.device)
        sizes = torch.tensor([p.numel() for p in seen], device=mean.device)
        debiasing = (1 - decay ** (steps + 1)).repeat_interleave(sizes, output_size=len(mean))
        count = (mean > 0).sum().clamp_min(1)
        ratios = squares.mul_(debiasing).div_(mean.clamp_min_(torch.finfo(mean.dtype).tiny))
        excess: Tensor = (ratios.sum() / count).sqrt()
        return excess.clamp_min(1)


class NanGuard:
    """Notices NaN and infinity without a host synchronisation per step."""

    def __init__(self, phase: str, advice: str) -> None:
        self.phase, self.advice = phase, advice
        self.finite: Tensor | None = None

    def see(self, step: int, *values: Tensor) -> None:
        """Take note of a step's values; raises at the next look.

        Raises:
            TrainingDiverged: If a value was NaN or infinite.
        """
        for value in values:
            good = torch.isfinite(value.detach())
            self.finite = good if self.finite is None else self.finite & good
        if step % _CHECK_EVERY == 0:
            self.look(step)

    def look(self, step: int) -> None:
        """Synchronise and check."""
        if self.finite is not None and not bool(self.finite):
            raise TrainingDiverged(
                f"the {self.phase} diverged: NaN or infinity by step {step}", self.advice
            )
