"""Classification: one of several classes for each row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from sparsearch.config.tasks.task import TaskConfig
from sparsearch.search.tasks.checks import constant
from sparsearch.search.tasks.data_files import Rows
from sparsearch.search.tasks.labels import class_table
from sparsearch.search.tasks.types.sequence import SequenceTask

__all__ = ["Classification"]


class Classification(SequenceTask):
    """Mean cross-entropy; accuracy, F1 or Matthews correlation."""

    def read_labels(
        self, config: TaskConfig, rows: Mapping[str, Rows]
    ) -> tuple[dict[str, Tensor], tuple[str, ...]]:
        """Indices into one table of classes for all splits."""
        table = class_table(config, rows)
        return {split: table.indices(split) for split in rows}, table.names

    def alike(self, label: Tensor) -> str:
        """They are of one class."""
        return "of one class"

    def undefined(self, metric: str, labels: Tensor, classes: Sequence[str]) -> str:
        """Matthews correlation has no value with one class, F1 of two classes none without rows of the second."""
        if metric == "matthews" and constant(labels):
            return f"holds the class {classes[int(labels[0])]!r} alone"
        if metric == "f1" and len(classes) == 2 and not bool((labels == 1).any()):
            return f"holds no row of the class {classes[1]!r}"
        return ""

    def loss_of(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Mean cross-entropy."""
        return nn.functional.cross_entropy(logits, labels)

    def measure(self, metric: str, logits: Tensor, labels: Tensor) -> float:
        """One of accuracy, f1 (binary: of class 1; else macro) and matthews.

        >>> import torch
        >>> logits = torch.tensor([[0.1, 0.9], [0.8, 0.2]])
        >>> Classification().measure("accuracy", logits, torch.tensor([1, 1]))
        0.5
        """
        target, guess = labels.cpu().numpy(), logits.argmax(dim=-1).numpy()
        if metric == "accuracy":
            return float((guess == target).mean())
        from sklearn import metrics  # two seconds, which most studies need not wait

        if metric == "matthews":
            return float(metrics.matthews_corrcoef(target, guess))
        average = "binary" if logits.shape[-1] == 2 else "macro"
        return float(metrics.f1_score(target, guess, average=average, zero_division=0.0))
