"""Running a model: the logits of a batch, the predictions on a split, and its score there."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sparsearch.config.tasks.imports import is_import_path
from sparsearch.search.phases import phase
from sparsearch.search.tasks.own_metric import own_score
from sparsearch.search.tasks.task import Split, Task, batches
from sparsearch.search.training.device import attention_for, autocast
from sparsearch.spaces.backbone.outputs import output_logits

__all__ = ["evaluate", "forward", "predict"]

_EVAL_BATCH = 128


def forward(
    model: nn.Module, batch: dict[str, Tensor], precision: str, **options: object
) -> Tensor:
    """Logits in float32: (batch, outputs), or as the model shapes them.

    Args:
        model: With the head of a task.
        batch: Its inputs, beside labels and row numbers.
        precision: Of the pass.
        options: Further arguments of the model.
    """
    inputs = {k: v for k, v in batch.items() if k not in ("labels", "rows")}
    first = next(iter(inputs.values()))
    tokens = (
        None if first.is_floating_point() else first.shape[-1]
    )  # of images the model alone knows
    with autocast(first.device, precision), attention_for(model, tokens, precision):
        logits = output_logits(model(**inputs, **options))
    return logits.float()


@torch.no_grad()
def predict(model: nn.Module, split: Split, precision: str = "fp32") -> Tensor:
    """Logits of every row, in the split's order: (rows, outputs), on the CPU."""
    model.eval()
    device = next(model.parameters()).device
    found, rows = [], []
    for batch in batches(split, _EVAL_BATCH, device):
        found.append(forward(model, batch, precision).cpu())
        rows.append(batch["rows"])
    logits = torch.cat(found)
    return torch.empty_like(logits).index_copy_(0, torch.cat(rows), logits)


def evaluate(model: nn.Module, task: Task, split: Split, precision: str) -> float:
    """The task's metric of a model on a split, the user's own among them; higher is better."""
    with phase("evaluation"):
        if is_import_path(task.metric):
            answers = task.behaviour.answers(task, model, split, precision)
            return own_score(task.metric, task.better, *answers)
        return task.behaviour.score(task, model, split, precision)
