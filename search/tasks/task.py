"""Tasks: a data set's three splits, tokenised once, cut into length-bucketed batches."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sparsearch.config.study import TaskConfig
from sparsearch.config.tasks.types import facts_of
from sparsearch.search.tasks.checks import check_enough_rows
from sparsearch.search.tasks.data_rows import SPLITS, load_rows
from sparsearch.search.tasks.data_summary import DataSummary
from sparsearch.search.tasks.types.base import TaskType
from sparsearch.search.tasks.types.registry import find_task_type
from sparsearch.spaces.backbone.inputs.readers import READERS

__all__ = [
    "SPLITS",
    "Split",
    "StoredInputs",
    "Task",
    "batches",
    "endless",
    "load_task",
    "subset",
    "token_batches",
]

_POOL = 16


@dataclass(frozen=True)
class StoredInputs:
    """Inputs of some layer for every row, without padding.

    Attributes:
        tokens: (all tokens, width).
        starts: (rows,) where each row begins.
    """

    tokens: Tensor
    starts: Tensor

    def batch(self, rows: Tensor, longest: int) -> Tensor:
        """(rows, longest, width); what stands at padding is of other rows, and masked as padding is."""
        places = self.starts[rows][:, None] + torch.arange(longest)[None, :]
        return self.tokens[places.clamp_(max=self.tokens.shape[0] - 1).to(self.tokens.device)]


@dataclass(frozen=True)
class Split:
    """Rows as padded tensors.

    Attributes:
        inputs: Name of a model input -> (rows, max length) integers; (rows, choices, max length) where each row has
            several texts; of images (rows, channels, height, width).
        lengths: Tokens of each row.
        labels: (rows, ...) class indices, or float targets.
        token_labels: Whether there is a label for each token: (rows, max length).
        references: What scores need beside labels, as plain values; empty where labels will do.
        stored: Inputs of a layer, where the layers below are skipped.
        token_inputs: Whether inputs have an axis of tokens, which batches cut to their longest row.
    """

    inputs: Mapping[str, Tensor]
    lengths: Tensor
    labels: Tensor
    token_labels: bool = False
    references: Mapping[str, Any] = field(default_factory=dict)
    stored: StoredInputs | None = None
    token_inputs: bool = True

    def __len__(self) -> int:
        return int(self.labels.shape[0])


@dataclass(frozen=True)
class Task:
    """A task ready to train on.

    Attributes:
        name: For queries.
        type: One of ``TASK_TYPES``.
        metric: Name of the metric.
        classes: Class names in the order of their indices; empty where there are none.
        max_length: Tokens per row at most.
        train: Training split; likewise ``validation`` and ``test``.
        warnings: What makes the scores worth less than they look.
        better: Of a metric of the user's own: whether ``higher`` or ``lower`` values are better.
        tokenizer: The backbone's, where a model is judged by what it writes.
    """

    name: str
    type: str
    metric: str
    classes: tuple[str, ...]
    max_length: int
    train: Split
    validation: Split
    test: Split
    warnings: tuple[str, ...] = ()
    better: str = "higher"
    tokenizer: Any = field(default=None, compare=False)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of every token and label, and of what they mean: equal for equal data."""
        digest = hashlib.sha256(f"{self.type} {self.metric} {self.classes}".encode())
        for split in (self.train, self.validation, self.test):
            for tensor in (*split.inputs.values(), split.labels):
                digest.update(str(tuple(tensor.shape)).encode())
                digest.update(tensor.contiguous().numpy().tobytes())
            if split.references:
                digest.update(json.dumps(split.references, sort_keys=True).encode())
        return digest.hexdigest()

    @property
    def summary(self) -> DataSummary:
        """Rows and classes of each split."""
        labels = {split: getattr(self, split).labels for split in SPLITS}
        return self.behaviour.summary(labels, self.classes, self.warnings)

    @property
    def behaviour(self) -> TaskType:
        """How it is trained and judged."""
        return find_task_type(self.type)

    @property
    def num_labels(self) -> int:
        """Outputs of the head."""
        return facts_of(self.type).outputs(self.classes)


def subset(split: Split, rows: Tensor) -> Split:
    """The given rows of a split, to learn from."""
    inputs = {k: v[rows] for k, v in split.inputs.items()}
    return Split(
        inputs,
        split.lengths[rows],
        split.labels[rows],
        split.token_labels,
        token_inputs=split.token_inputs,
    )


def batches(
    split: Split, batch_size: int, device: torch.device, generator: torch.Generator | None = None
) -> Iterator[dict[str, Tensor]]:
    """One epoch of batches, each padded to its own longest row.

    With a generator rows are shuffled, then sorted by length inside pools of 16 batches, and the
    batches shuffled; without one, rows come sorted by length. A batch holds the model's inputs
    and ``labels``; ``rows`` are its row numbers.
    """
    count = len(split)
    if generator is None:
        order = torch.argsort(split.lengths, stable=True)
        chunks = list(order.split(batch_size))  # type: ignore[no-untyped-call]
    else:
        shuffled = torch.randperm(count, generator=generator)
        chunks = []
        for pool in shuffled.split(batch_size * _POOL):  # type: ignore[no-untyped-call]
            chunks += pool[torch.argsort(split.lengths[pool], stable=True)].split(batch_size)
        chunks = [chunks[i] for i in torch.randperm(len(chunks), generator=generator).tolist()]
    for rows in chunks:
        longest = int(split.lengths[rows].max())
        cut = slice(longest if split.token_inputs else None)
        batch = {
            k: v[rows][..., cut].to(device, non_blocking=True) for k, v in split.inputs.items()
        }
        if split.stored is not None:
            batch["hidden"] = split.stored.batch(rows, longest)
        labels = split.labels[rows, :longest] if split.token_labels else split.labels[rows]
        yield batch | {"labels": labels.to(device, non_blocking=True), "rows": rows}


def token_batches(split: Split, tokens: int, device: torch.device) -> Iterator[dict[str, Tensor]]:
    """One epoch of batches as of ``batches``, each of as many rows as fit into some tokens, padding counted."""
    order = torch.argsort(split.lengths, stable=True)
    start = 0
    while start < len(order):
        longest = split.lengths[order[start:]] * torch.arange(1, len(order) - start + 1)
        rows = order[start : start + max(1, int((longest <= tokens).sum()))]
        (batch,) = batches(subset(split, rows), len(rows), device)
        yield batch | {"rows": rows[batch["rows"]]}
        start += len(rows)


def endless(
    split: Split, batch_size: int, device: torch.device, generator: torch.Generator
) -> Iterator[dict[str, Tensor]]:
    """Epoch after epoch of batches."""
    while True:
        yield from batches(split, batch_size, device, generator)


def load_task(
    config: TaskConfig, folder: Path, tokenizer: Any, most_tokens: int | None = None
) -> Task:
    """Load, check and tokenise a task.

    Args:
        config: The task.
        folder: Where relative paths of local files start.
        tokenizer: The backbone's tokenizer, or its image processor.
        most_tokens: Longest input that the backbone takes, None without limit; of an image its tokens.

    Raises:
        DataError: If the data cannot be read, a column is missing or holds something else than text or labels,
            a label is outside the classes, one cannot learn from the training split, or the metric has no value on
            another one.
    """
    task_type = find_task_type(config.type)
    columns = {split: task_type.columns_of(config, split) for split in SPLITS}
    rows = load_rows(config.data, folder, columns, config.images)
    check_enough_rows(config, len(rows["train"]))
    limit = READERS[config.facts.reads].row_tokens(config.max_length, tokenizer, most_tokens)
    encoded = task_type.encode(config, rows, tokenizer, limit)
    return Task(
        config.title,
        config.type,
        config.metric,
        encoded.classes,
        limit,
        **encoded.splits,
        warnings=encoded.warnings,
        better=config.better,
        tokenizer=tokenizer,
    )
