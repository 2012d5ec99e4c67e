"""Multi-label classification: any number of classes for each row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sparsearch.config.tasks.task import TaskConfig
from sparsearch.errors import DataError
from sparsearch.search.tasks.data_files import Rows
from sparsearch.search.tasks.data_summary import DataSummary
from sparsearch.search.tasks.labels import label_text
from sparsearch.search.tasks.task import Split, Task
from sparsearch.search.tasks.types.sequence import SequenceTask
from sparsearch.search.training.evaluate import predict

__all__ = ["MultiLabel"]

_SHAPE = 'write a list of classes in each row, ["a", "b"]; an empty one where none applies'


class MultiLabel(SequenceTask):
    """Mean binary cross-entropy over rows and classes; F1 of all decisions, or the mean of each class's."""

    def read_labels(
        self, config: TaskConfig, rows: Mapping[str, Rows]
    ) -> tuple[dict[str, Tensor], tuple[str, ...]]:
        """(rows, classes) of zeros and ones; the classes are ``task.labels``, else those of the training split."""
        named = {split: _named(config, split, part) for split, part in rows.items()}
        classes = (
            list(map(label_text, config.labels))
            if config.labels is not None
            else sorted({name for row in named["train"] for name in row})
        )
        if not classes:
            raise DataError(
                f"split 'train': column {config.label!r} names no class in any row", _SHAPE
            )
        found = {}
        for split, names in named.items():
            found[split] = torch.zeros(len(names), len(classes))
            for row, chosen in enumerate(names):
                if unknown := sorted(set(chosen) - set(classes)):
                    raise DataError(
                        f"split {split!r}, row {row}: label {unknown[0]!r} is outside the classes "
                        f"{', '.join(classes[:10])}",
                        "correct the rows, or list the classes (task.labels: [...])",
                    )
                found[split][row, [classes.index(name) for name in chosen]] = 1.0
        return found, tuple(classes)

    def summary(
        self, labels: Mapping[str, Tensor], classes: Sequence[str], warnings: Sequence[str]
    ) -> DataSummary:
        """Rows, and those of each class."""
        rows = {split: len(values) for split, values in labels.items()}
        counts = [values.sum(dim=0).long().tolist() for values in labels.values()]
        by_class = dict(zip(classes, zip(*counts, strict=True), strict=True))
        return DataSummary(rows, by_class, {}, tuple(warnings))

    def alike(self, label: Tensor) -> str:
        """They have the same classes."""
        return "of the same classes"

    def undefined(self, metric: str, labels: Tensor, classes: Sequence[str]) -> str:
        """F1 has no value where no row has a class."""
        return "" if bool(labels.any()) else "names no class"

    def loss_of(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Mean binary cross-entropy."""
        return nn.functional.binary_cross_entropy_with_logits(logits, labels)

    def answers(
        self, task: Task, model: nn.Module, split: Split, precision: str
    ) -> tuple[list[Any], list[Any]]:
        """Names of the classes of each row."""
        decided = predict(model, split, precision) > 0, split.labels > 0
        found, right = (
            [[c for c, has in zip(task.classes, row, strict=True) if has] for row in rows.tolist()]
            for rows in decided
        )
        return found, right

    def measure(self, metric: str, logits: Tensor, labels: Tensor) -> float:
        """F1 of logits above 0: ``f1-micro`` over all decisions, ``f1-macro`` the mean of the classes'."""
        from sklearn import metrics  # two seconds, which most studies need not wait

        guess, target = (logits > 0).numpy(), (labels.cpu() > 0).numpy()
        average = metric.removeprefix("f1-")
        return float(metrics.f1_score(target, guess, average=average, zero_division=0.0))


def _named(config: TaskConfig, split: str, rows: Rows) -> list[list[str]]:
    """The classes of each row by name, each once."""
    found = []
    for number, values in enumerate(rows.columns[config.label]):
        if not isinstance(values, list) or not all(isinstance(v, str | int) for v in values):
            raise DataError(
                f"split {split!r}, row {number}: column {config.label!r} holds no list of classes: {values!r:.60}",
                _SHAPE,
            )
        names = rows.class_names.get(config.label)
        found.append([names[v] if names else label_text(v) for v in dict.fromkeys(values)])
    return found
