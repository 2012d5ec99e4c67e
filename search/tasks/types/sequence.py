"""Tasks whose rows are one or two texts with one label."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sparsearch.config.tasks.task import TaskConfig
from sparsearch.search.tasks.checks import (
    check_labels_vary,
    check_metric,
    check_texts,
    check_tokens,
    class_warnings,
    summarise_labels,
    target_warnings,
    text_warnings,
)
from sparsearch.search.tasks.data_files import Rows
from sparsearch.search.tasks.data_rows import SPLITS
from sparsearch.search.tasks.data_summary import DataSummary
from sparsearch.search.tasks.task import Split, Task
from sparsearch.search.tasks.types.base import Encoded, TaskType
from sparsearch.search.training.evaluate import forward, predict

__all__ = ["SequenceTask"]


class SequenceTask(TaskType):
    """One label for a row, of text unless a type says otherwise.

    A type says how labels are read, what the loss is, and how scores are computed.
    """

    @abstractmethod
    def read_labels(
        self, config: TaskConfig, rows: Mapping[str, Rows]
    ) -> tuple[dict[str, Tensor], tuple[str, ...]]:
        """The (rows,) labels of each split, and the names of the classes."""

    @abstractmethod
    def alike(self, label: Tensor) -> str:
        """What rows have in common that all have one label, for a message."""

    @abstractmethod
    def undefined(self, metric: str, labels: Tensor, classes: Sequence[str]) -> str:
        """What a split holds on which a metric has no value, whatever a model predicts; empty if it has one."""

    @abstractmethod
    def loss_of(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The mean loss of (rows, outputs) logits."""

    @abstractmethod
    def measure(self, metric: str, logits: Tensor, labels: Tensor) -> float:
        """One metric of (rows, outputs) logits on the CPU."""

    def columns(self, config: TaskConfig) -> tuple[str, ...]:
        """The texts and the label."""
        return tuple(dict.fromkeys([*config.text, config.label]))

    def encode(
        self, config: TaskConfig, rows: Mapping[str, Rows], tokenizer: Any, limit: int
    ) -> Encoded:
        """Labels of all rows decide what the classes are; the training split is then cut."""
        labels, classes = self.read_labels(config, rows)
        total = len(rows["train"])
        used = config.max_train_rows or total
        labels["train"] = labels["train"][:used]
        parts = {**rows, "train": rows["train"].part(0, used)}
        warnings = self.row_warnings(config, parts)
        check_labels_vary(config, labels["train"], total, self.alike(labels["train"][0]))
        for split in SPLITS[1:]:
            check_metric(config, split, self.undefined(config.metric, labels[split], classes))
        warnings += class_warnings(config, self.summary(labels, classes, ()))
        if not classes:
            warnings += target_warnings(config, labels["train"])
        splits = {
            s: self.read_split(config, s, parts[s], labels[s], tokenizer, limit) for s in SPLITS
        }
        return Encoded(splits, classes, tuple(warnings))

    def row_warnings(self, config: TaskConfig, rows: Mapping[str, Rows]) -> list[str]:
        """Refuse splits that hold a row without a text; what makes their scores worth less."""
        texts = {split: {c: part.columns[c] for c in config.text} for split, part in rows.items()}
        for split in SPLITS:
            check_texts(split, texts[split])
        return text_warnings(texts)

    def read_split(
        self,
        config: TaskConfig,
        split: str,
        rows: Rows,
        labels: Tensor,
        processor: Any,
        limit: int,
    ) -> Split:
        """Tokens of the texts, padded to the longest row."""
        columns = [list(rows.columns[c]) for c in config.text]
        encoded = processor(*columns, truncation=True, max_length=limit, padding="longest")
        inputs = {k: torch.tensor(v) for k, v in encoded.items()}
        lengths = inputs["attention_mask"].sum(dim=1)
        check_tokens(split, processor, inputs["input_ids"], lengths)
        return Split(inputs, lengths, labels)

    def summary(
        self, labels: Mapping[str, Tensor], classes: Sequence[str], warnings: Sequence[str]
    ) -> DataSummary:
        """Rows of each class, or the range of the targets."""
        return summarise_labels(labels, classes, warnings)

    def loss(self, model: nn.Module, batch: dict[str, Tensor], precision: str) -> Tensor:
        """Of the head's outputs."""
        return self.loss_of(forward(model, batch, precision), batch["labels"])

    def split_loss(self, model: nn.Module, split: Split, precision: str) -> float:
        """Of all rows together."""
        return float(self.loss_of(predict(model, split, precision), split.labels))

    def answers(
        self, task: Task, model: nn.Module, split: Split, precision: str
    ) -> tuple[list[Any], list[Any]]:
        """The class of each row by its name; the number, where there are no classes."""
        logits = predict(model, split, precision)
        if not task.classes:
            return logits.squeeze(-1).tolist(), split.labels.tolist()
        found, right = logits.argmax(dim=-1).tolist(), split.labels.tolist()
        return [task.classes[i] for i in found], [task.classes[i] for i in right]

    def score(self, task: Task, model: nn.Module, split: Split, precision: str) -> float:
        """Of all rows together."""
        return self.measure(task.metric, predict(model, split, precision), split.labels)
