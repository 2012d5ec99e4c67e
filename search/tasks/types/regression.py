"""Regression: one number for each row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from sparsearch.config.tasks.task import TaskConfig
from sparsearch.search.tasks.checks import constant
from sparsearch.search.tasks.data_files import Rows
from sparsearch.search.tasks.labels import targets
from sparsearch.search.tasks.types.sequence import SequenceTask

if TYPE_CHECKING:
    from sparsearch.search.tasks.task import Split

__all__ = ["Regression"]


class Regression(SequenceTask):
    """Mean squared error; Pearson correlation."""

    def read_labels(
        self, config: TaskConfig, rows: Mapping[str, Rows]
    ) -> tuple[dict[str, Tensor], tuple[str, ...]]:
        """The numbers; there are no classes."""
        columns = {split: part.columns[config.label] for split, part in rows.items()}
        return {split: targets(config, split, values) for split, values in columns.items()}, ()

    def alike(self, label: Tensor) -> str:
        """They have one target."""
        return f"with {label:g}"

    def undefined(self, metric: str, labels: Tensor, classes: Sequence[str]) -> str:
        """Correlation has no value with a constant."""
        return f"holds {labels[0]:g} in all {len(labels)} rows" if constant(labels) else ""

    def constant_answer(self, split: Split) -> Tensor:
        """The mean target, the best answer to rows that are not looked at.

        From zero all parameters would set out together for the mean, which is a long way for targets such as 0 to 5
        and nothing to be learnt; modules in many places overshoot, and may never come back.
        """
        return split.labels.float().mean().reshape(1)

    def loss_of(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Mean squared error."""
        return nn.functional.mse_loss(logits.squeeze(-1), labels)

    def measure(self, metric: str, logits: Tensor, labels: Tensor) -> float:
        """Pearson correlation; 0 where the model predicts a constant."""
        scores = logits.squeeze(-1)
        if not float(scores.std()) * float(labels.float().std()) > 0.0:
            return 0.0
        return float(torch.corrcoef(torch.stack([scores.double(), labels.double().cpu()]))[0, 1])
