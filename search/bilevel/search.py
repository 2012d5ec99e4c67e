"""Bi-level search: gates learn on one half of the training split, module weights on the other (S3PET section 3.3).

First order costs two passes per step, one for the gates and one for the weights. Second order
costs four: the gradient of the training loss serves both the virtual step and the real one, then
the validation loss and the two points of the finite difference. Only module weights are ever
copied.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from sparsearch.config.study import SearchConfig, TrainConfig
from sparsearch.errors import InfeasibleError
from sparsearch.search.bilevel.early_stopping import SelectionMonitor
from sparsearch.search.bilevel.local_search import hard_gates
from sparsearch.search.bilevel.supernet import Supernet
from sparsearch.search.gates.gates import Gates
from sparsearch.search.gates.idle import IdleModules
from sparsearch.search.gates.targets import BudgetSchedule
from sparsearch.search.selection.selector import Selector
from sparsearch.search.tasks.task import Split, Task, endless, subset
from sparsearch.search.training.evaluate import evaluate
from sparsearch.search.training.gradient_guard import GradientGuard
from sparsearch.search.training.optimiser import NanGuard, learning_rates, linear_schedule
from sparsearch.search.training.recomputing import prepared
from sparsearch.search.training.seeds import derive
from sparsearch.search.training.train import Observer, silent

__all__ = ["BilevelSearch", "SearchProblem"]

_DIFFERENCE = 0.01
_BETAS = (0.9, 0.999)
_REFRESH = 10
_NOTES = 12
"""How often alpha is noted during a search."""

Batch = dict[str, Tensor]


@dataclass(frozen=True)
class SearchProblem:
    """What a search learns from, and how.

    Attributes:
        task: Its training split is halved at random.
        search: How to search.
        train: Learning rates of the module weights.
    """

    task: Task
    search: SearchConfig
    train: TrainConfig


class BilevelSearch:
    """Learns one alpha, for one budget or for a range of them.

    Args:
        supernet: The gated model.
        gates: The gates; changed in place.
        problem: Task and settings.
        schedule: What the gates are held to, step by step.
        seed: Of the halves, batches, noise and dropout.
        monitor: Tells whether the search may stop early; None where it may not.
        selector: Makes the hard structure that ``checkpoint: hard`` judges.

    Attributes:
        taken: Steps taken so far.
        noted: Alpha after some of them, on the CPU.
    """

    def __init__(
        self,
        supernet: Supernet,
        gates: Gates,
        problem: SearchProblem,
        schedule: BudgetSchedule,
        seed: int,
        monitor: SelectionMonitor | None = None,
        selector: Selector | None = None,
    ) -> None:
        config, train = problem.search, problem.train
        self.supernet, self.gates, self.config, self.task = supernet, gates, config, problem.task
        self.schedule, self.monitor, self.selector = schedule, monitor, selector
        self.targets = schedule.final
        self.taken = 0
        self.noted: dict[int, Tensor] = {}
        self.seed, self.dropout, self.recomputes = seed, train.dropout, train.checkpointing
        self.device = gates.alpha.device
        self.idle = IdleModules(gates, config.skip_below)
        self.noise = torch.Generator().manual_seed(derive(seed, "noise"))
        groups = learning_rates(supernet.model, train.lr, train.kind_lr)
        self.optimizer = torch.optim.AdamW(groups, betas=_BETAS, weight_decay=0.0, foreach=True)
        self.guard = GradientGuard(supernet.attachment, "search")
        self.weights = [p for group in groups for p in group["params"]]
        self.alpha_optimizer = torch.optim.AdamW(
            [gates.alpha], lr=config.alpha_lr, weight_decay=0.0
        )
        self.warm_steps = math.ceil(config.warmup * config.steps)
        self.schedules = [
            linear_schedule(self.optimizer, config.steps, config.warmup),
            linear_schedule(self.alpha_optimizer, config.steps - self.warm_steps, 0.0),
        ]
        weight_rows, gate_rows = self._halves(self.task.train)
        self.weight_batches = self._endless(weight_rows, "weights")
        self.gate_batches = self._endless(gate_rows, "gates")

    def _halves(self, train: Split) -> tuple[Split, Split]:
        if not self.config.bilevel:
            return train, train
        generator = torch.Generator().manual_seed(derive(self.seed, "halves"))
        order = torch.randperm(len(train), generator=generator)
        middle = len(train) // 2
        return subset(train, order[:middle]), subset(train, order[middle:])

    def _endless(self, split: Split, purpose: str) -> Iterator[Batch]:
        generator = torch.Generator().manual_seed(derive(self.seed, purpose))
        return endless(split, self.config.batch_size, self.device, generator)

    def run(self, observe: Observer = silent) -> Tensor:
        """Search; returns alpha, (candidates,), on the CPU.

        Raises:
            TrainingDiverged: If a loss or a gradient is NaN or infinite.
            ModelStateError: If an attached parameter never has a gradient.
        """
        supernet = self.supernet
        with prepared(supernet.model, supernet.precision, self.recomputes):
            return self._run(observe)

    def _run(self, observe: Observer) -> Tensor:
        config = self.config
        torch.manual_seed(derive(self.seed, "dropout"))
        watch = NanGuard("search", "lower train.lr or search.alpha_lr")
        best, kept = -math.inf, None
        self.supernet.model.train(self.dropout)
        for step in range(1, config.steps + 1):
            self.begin_step(step)
            loss = self.step() if step > self.warm_steps else self._open_step()
            self.taken = step
            for schedule in self.schedules if step > self.warm_steps else self.schedules[:1]:
                schedule.step()
            watch.see(step, loss, self.gates.alpha.sum())
            observe("search", step, config.steps)
            last = step == config.steps or self._may_stop(step)
            if last or step % math.ceil(config.steps / _NOTES) == 0:
                self.noted[step] = self.gates.alpha.detach().cpu().clone()
            if config.checkpoint != "last" and (step % config.valid_every == 0 or last):
                score = self._score()
                if score > best:
                    best, kept = score, self.gates.alpha.detach().cpu().clone()
            if last:
                break
        watch.look(self.taken)
        if self.taken:
            self.guard.look()
        self.supernet.model.eval()
        return kept if kept is not None else self.gates.alpha.detach().cpu().clone()

    def begin_step(self, step: int) -> None:
        """Set the targets, temperature and idle modules of a step, counted from 1."""
        config, share = self.config, (step - 1) / max(1, self.config.steps - 1)
        if config.final_temperature is not None:
            cooling = config.final_temperature / config.temperature
            self.gates.temperature = config.temperature * cooling**share
        self.targets = self.schedule.at(share)
        if config.skip_below and (step - 1) % _REFRESH == 0 and step > self.warm_steps:
            most = max(self.targets.params, self.schedule.high.params)
            self.supernet.attachment.skip(self.idle.refresh(replace(self.targets, params=most)))

    def _may_stop(self, step: int) -> bool:
        config = self.config
        look = config.early_stop and step > self.warm_steps and step % config.stop_every == 0
        if not look or self.monitor is None:
            return False
        return self.monitor.settled(self.gates.alpha.detach().cpu().tolist())

    def _open_step(self) -> Tensor:
        """Warm-up: weights alone, all gates open, but nothing is cut or pruned."""
        removals = self.supernet.removals.to(self.device)
        return self._step_against((~removals).to(self.gates.alpha.dtype))

    def step(self) -> Tensor:
        """One search step, without its schedules; returns the training loss."""
        if not self.config.bilevel:
            return self._joint_step()
        return (
            self._first_order_step() if self.config.order == "first" else self._second_order_step()
        )

    def train_weights(self) -> Tensor:
        """Module weights against new samples of the gates: what plain training of the supernet does."""
        with torch.no_grad():
            z = self._sample(self._draw())
        return self._step_against(z)

    def _step_against(self, z: Tensor) -> Tensor:
        loss = self.supernet.loss(next(self.weight_batches), z)
        self._step_weights(self._gradients(loss, self.weights))
        return loss

    def _gradients(self, loss: Tensor, of: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Gradients; zero for what did not take part (skipped units)."""
        found = torch.autograd.grad(loss, of, allow_unused=True)
        reached = (p for p, g in zip(of, found, strict=True) if g is not None)
        self.guard.see(self.taken + 1, reached)
        return tuple(
            torch.zeros_like(p) if g is None else g for p, g in zip(of, found, strict=True)
        )

    def _score(self) -> float:
        """Validation score with every candidate at its probability, or cut to a hard structure.

        Always under the targets that the search ends at, whatever those of the step.
        """
        supernet, task, gates = self.supernet, self.task, self.gates
        if self.config.checkpoint == "hard":
            assert self.selector is not None, "checkpoint hard selects"
            try:
                z = hard_gates(self.selector, gates.alpha.detach().cpu()).to(self.device)
            except InfeasibleError:  # nothing fits at this alpha; another one may be kept
                return -math.inf
        else:
            with torch.no_grad():
                z = gates.probabilities(self.schedule.final).float()
        with supernet.alone(z):
            score = evaluate(supernet.model, task, task.validation, supernet.precision)
        supernet.model.train(self.dropout)
        return score

    def _sample(self, noise: Tensor) -> Tensor:
        return self.gates.sample(self.targets, noise)

    def _draw(self) -> Tensor:
        return self.gates.noise(self.noise)

    def _penalised(self, loss: Tensor) -> Tensor:
        if self.gates.control == "l0":
            return loss + self.config.l0_weight * self.gates.penalty().float()
        return loss

    def _step_alpha(self, gradient: Tensor) -> None:
        self.gates.alpha.grad = gradient
        nn.utils.clip_grad_norm_([self.gates.alpha], self.config.clip)
        self.alpha_optimizer.step()
        self.gates.alpha.grad = None

    def _step_weights(self, gradients: tuple[Tensor, ...]) -> None:
        self._clip(gradients)  # again, where a second-order step has: that changes nothing
        for weight, gradient in zip(self.weights, gradients, strict=True):
            weight.grad = gradient
        self.optimizer.step()
        self.optimizer.zero_grad()

    def _clip(self, gradients: tuple[Tensor, ...]) -> Tensor:
        """Scale gradients in place to the largest norm allowed; returns the factor, a scalar."""
        norm = nn.utils.get_total_norm(gradients)
        factor = (self.config.clip / (norm + 1e-6)).clamp(max=1.0)
        torch._foreach_mul_(gradients, factor)
        return factor

    def _first_order_step(self) -> Tensor:
        """Gates against the current weights, then weights against new samples of the gates."""
        z = self._sample(self._draw())
        loss = self._penalised(self.supernet.loss(next(self.gate_batches), z))
        (gradient,) = self._gradients(loss, [self.gates.alpha])
        self._step_alpha(gradient)
        return self.train_weights()

    def _joint_step(self) -> Tensor:
        """Single level: both from one pass over one training batch."""
        z = self._sample(self._draw())
        loss = self._penalised(self.supernet.loss(next(self.weight_batches), z))
        gradient, *gradients = self._gradients(loss, [self.gates.alpha, *self.weights])
        self._step_alpha(gradient)
        self._step_weights(tuple(gradients))
        return loss

    def _second_order_step(self) -> Tensor:
        """Gates against the weights after one virtual step w' = w - c P g, whose dependence on alpha counts.

        With Adam's preconditioner P (learning rates included) and the factor c of clipping held fixed,
        d L_val(w') / d alpha = partial - c d/d alpha <g(w, alpha), P v> with v the gradient of L_val at w'. The last
        term is a central difference of the alpha gradient of the training loss along P v (DARTS,
        eq. 8, which assumes P = 1; the published S3PET code steps with AdamW but differentiates
        plain SGD). Noise, batch and dropout are the same at both points.
        """
        noise, batch = self._draw(), next(self.weight_batches)
        with torch.no_grad():
            fixed = self._sample(noise)
        loss = self.supernet.loss(batch, fixed)
        gradients = self._gradients(loss, self.weights)
        factor = self._clip(gradients)
        saved = [w.detach().clone() for w in self.weights]
        scale = self._preconditioner(gradients)
        self._move([-s * g for s, g in zip(scale, gradients, strict=True)])
        validation = self._penalised(
            self.supernet.loss(next(self.gate_batches), self._sample(noise))
        )
        gradient, *ahead = self._gradients(validation, [self.gates.alpha, *self.weights])
        direction = [s * v for s, v in zip(scale, ahead, strict=True)]
        del ahead, scale
        epsilon = _DIFFERENCE / (nn.utils.get_total_norm(direction) + 1e-6)
        curvature = self._difference(batch, noise, saved, direction, epsilon)
        self._restore(saved)
        self._step_alpha(gradient - factor * curvature)
        self._step_weights(gradients)
        return loss

    def _difference(
        self,
        batch: Batch,
        noise: Tensor,
        saved: list[Tensor],
        direction: list[Tensor],
        epsilon: Tensor,
    ) -> Tensor:
        """[grad_alpha L(w + eps d) - grad_alpha L(w - eps d)] / (2 eps), the same dropout at both points."""
        dropout = int(torch.randint(2**62, (), generator=self.noise))
        found: list[Tensor] = []
        for sign in (1.0, -1.0):
            self._restore(saved)
            self._move([sign * epsilon * d for d in direction])
            devices = [self.device] if self.device.type == "cuda" else []
            with torch.random.fork_rng(devices=devices):
                torch.manual_seed(dropout)
                loss = self.supernet.loss(batch, self._sample(noise))
            found += self._gradients(loss, [self.gates.alpha])
        return (found[0] - found[1]) / (2 * epsilon)

    @torch.no_grad()
    def _restore(self, saved: list[Tensor]) -> None:
        """Put module weights back; the backbone never changes, so it needs no copy."""
        torch._foreach_copy_(self.weights, saved)

    @torch.no_grad()
    def _move(self, by: list[Tensor]) -> None:
        torch._foreach_add_(self.weights, by)

    def _preconditioner(self, gradients: tuple[Tensor, ...]) -> list[Tensor]:
        """What AdamW will multiply this step's gradient by, lr / (sqrt(v) + eps), for each weight."""
        decay, scales = _BETAS[1], []
        settings = [(g["lr"], g["eps"]) for g in self.optimizer.param_groups for _ in g["params"]]
        for weight, gradient, (lr, eps) in zip(self.weights, gradients, settings, strict=True):
            state = self.optimizer.state.get(weight, {})
            steps = float(state["step"]) + 1 if state else 1.0
            old = state["exp_avg_sq"] if state else torch.zeros_like(gradient)
            second = (decay * old + (1 - decay) * gradient.square()) / (1 - decay**steps)
            scales.append(lr / (second.sqrt() + eps))
        return scales
