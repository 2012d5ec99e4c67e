"""Measuring: predictions on a split and the metrics of the GLUE tasks."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sparsearch.search.tasks.task import Split, Task, batches
from sparsearch.search.training.device import attention_for, autocast

__all__ = ["evaluate", "loss_of", "measure", "predict"]

_EVAL_BATCH = 128


def forward(model: nn.Module, batch: dict[str, Tensor], precision: str) -> Tensor:
    """Logits in float32: (batch, outputs)."""
    inputs = {k: v for k, v in batch.items() if k not in ("labels", "rows")}
    device, tokens = inputs["input_ids"].device, inputs["input_ids"].shape[1]
    with autocast(device, precision), attention_for(model, tokens, precision):
        logits: Tensor = model(**inputs).logits
    return logits.float()


def loss_of(logits: Tensor, labels: Tensor, task_type: str) -> Tensor:
    """Mean cross-entropy, or mean squared error for regression."""
    if task_type == "regression":
        return nn.functional.mse_loss(logits.squeeze(-1), labels)
    return nn.functional.cross_entropy(logits, labels)


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


def measure(metric: str, logits: Tensor, labels: Tensor) -> float:
    """One metric: accuracy, f1 (binary: of class 1; else macro), matthews, or pearson.

    >>> measure("accuracy", torch.tensor([[0.1, 0.9], [0.8, 0.2]]), torch.tensor([1, 1]))
    0.5
    """
    target = labels.cpu().numpy()
    if metric == "pearson":
        scores = logits.squeeze(-1)
        spread = float(scores.std()) * float(labels.float().std())
        if not spread > 0.0:
            return 0.0
        return float(torch.corrcoef(torch.stack([scores.double(), labels.double().cpu()]))[0, 1])
    guess = logits.argmax(dim=-1).numpy()
    if metric == "accuracy":
        return float((guess == target).mean())
    from sklearn import metrics  # two seconds, which most studies need not wait

    if metric == "matthews":
        return float(metrics.matthews_corrcoef(target, guess))
    average = "binary" if logits.shape[-1] == 2 else "macro"
    return float(metrics.f1_score(target, guess, average=average, zero_division=0.0))


def evaluate(model: nn.Module, task: Task, split: Split, precision: str) -> float:
    """The task's metric of a model on a split."""
    return measure(task.metric, predict(model, split, precision), split.labels)
