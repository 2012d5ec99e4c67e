"""Training what is trainable of a model: linear schedule, clipping, the checkpoint best on validation."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from sparsearch.config.study import TrainConfig
from sparsearch.errors import SparsearchError
from sparsearch.search.tasks.task import Task, batches
from sparsearch.search.training.embedding_rows import only_rows_read
from sparsearch.search.training.evaluate import evaluate
from sparsearch.search.training.gradient_guard import GradientGuard
from sparsearch.search.training.optimiser import ClippedAdamW, NanGuard, linear_schedule
from sparsearch.search.training.prefix import StoredPrefix, enter_above
from sparsearch.search.training.recomputing import prepared
from sparsearch.spaces.attachment.attachment import attachment_of

__all__ = [
    "Observer",
    "TrainResult",
    "silent",
    "steps_left",
    "steps_per_epoch",
    "train",
]


class Observer(Protocol):
    """Told of progress: ``done`` of ``total`` steps of a phase, and a new validation score where there is one."""

    def __call__(self, phase: str, done: int, total: int, score: float | None = None) -> None:
        """One step further."""


def silent(phase: str, done: int, total: int, score: float | None = None) -> None:
    """An observer that looks away."""


@dataclass(frozen=True)
class TrainResult:
    """The model holds the best checkpoint when training returns.

    Attributes:
        score: Validation score of the best checkpoint.
        epoch: The epoch it is from, 1-based; while masks change, none is kept. 0 where nothing trains.
        history: Validation score of every epoch.
    """

    score: float
    epoch: int
    history: tuple[float, ...]


def steps_per_epoch(task: Task, config: TrainConfig) -> int:
    """Batches of the training split."""
    return math.ceil(len(task.train) / config.batch_size)


def steps_left(task: Task, config: TrainConfig, taken: int) -> int:
    """Steps of a training of which some are taken already.

    Raises:
        SparsearchError: If none is left.
    """
    steps = config.epochs * steps_per_epoch(task, config)
    if taken >= steps:
        raise SparsearchError(
            f"train.start_steps takes {taken} of all {steps} steps of training (batches of {config.batch_size} rows): "
            "nothing is left for the ticket",
            "lower it, or raise train.epochs",
        )
    return steps - taken


def train(
    model: nn.Module,
    task: Task,
    config: TrainConfig,
    groups: list[dict[str, Any]],
    seed: int,
    observe: Observer = silent,
    prefix: StoredPrefix | None = None,
    taken: int = 0,
) -> TrainResult:
    """Train the given parameters; keep the epoch that is best on validation, among those with final masks.

    Args:
        model: With a classification or regression head; changed in place.
        task: Its training and validation splits are used, never its test split.
        config: Epochs, batch size, schedule, precision.
        groups: Parameters and their peak learning rates, see ``learning_rates``.
        seed: Of dropout and of the order of the rows.
        observe: Told of every step.
        prefix: Where outputs of the frozen lower layers stay for the next training of this backbone.
        taken: Steps that the model has had already, which are taken off the first epochs.

    Raises:
        SparsearchError: If ``taken`` leaves no step.
        TrainingDiverged: If a loss or gradient is NaN or infinite.
        ModelStateError: If an attached parameter never has a gradient.
    """
    if config.weight_decay:  # it moves every row
        return _train(model, task, config, groups, seed, observe, prefix, taken)
    with only_rows_read(model, task, groups) as small:
        return _train(model, task, config, small, seed, observe, prefix, taken)


def _train(
    model: nn.Module,
    task: Task,
    config: TrainConfig,
    groups: list[dict[str, Any]],
    seed: int,
    observe: Observer,
    prefix: StoredPrefix | None,
    taken: int,
) -> TrainResult:
    device = next(model.parameters()).device
    parameters = [p for group in groups for p in group["params"]]
    attachment = attachment_of(model)
    clipped = config.clip_updates and attachment is not None
    adamw = ClippedAdamW if clipped else torch.optim.AdamW
    optimizer = adamw(groups, weight_decay=config.weight_decay, fused=True)
    per_epoch, steps = steps_per_epoch(task, config), steps_left(task, config, taken)
    schedule = linear_schedule(optimizer, steps, config.warmup)
    generator = torch.Generator().manual_seed(seed)
    watch = NanGuard(
        "training", "lower train.lr (train.full_lr for `full`), or set train.precision: fp32"
    )
    torch.manual_seed(seed)
    best, history, step = -math.inf, [], 0
    kept = [p.detach().clone() for p in parameters]
    best_epoch = 0
    guard = GradientGuard(attachment, "training")
    if attachment is not None:
        attachment.advance(0, steps)
    with prepared(model, config.precision, config.checkpointing):
        model.eval()
        runner = model
        if not config.dropout:
            runner, task = enter_above(model, task, config.precision, config.cache_bytes, prefix)
        for epoch in range(1 + taken // per_epoch, config.epochs + 1):
            model.train(config.dropout)
            first = max(0, taken - (epoch - 1) * per_epoch)
            found = batches(task.train, config.batch_size, device, generator)
            for batch in itertools.islice(found, first, None):
                loss = task.behaviour.loss(runner, batch, config.precision)
                loss.backward()  # type: ignore[no-untyped-call]
                guard.see(step + 1, (p for p in parameters if p.grad is not None))
                norm = nn.utils.clip_grad_norm_(parameters, config.clip)
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
                step += 1
                if attachment is not None:
                    attachment.advance(step, steps)
                watch.see(step, loss, norm)
                observe("train", step, steps)
            watch.look(step)
            guard.look()
            score = evaluate(runner, task, task.validation, config.precision)
            history.append(score)
            observe("train", step, steps, score)
            settled = attachment is None or attachment.settled
            if settled and score > best:
                best, best_epoch = score, epoch
                _copy(parameters, kept)
    _copy(kept, parameters)
    model.eval()
    return TrainResult(best, best_epoch, tuple(history))


@torch.no_grad()
def _copy(source: Iterable[Tensor], target: Iterable[Tensor]) -> None:
    for a, b in zip(source, target, strict=True):
        b.copy_(a.detach())
