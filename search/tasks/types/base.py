"""What a task type is: from rows to tensors, from a batch to a loss, from a model to a score."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from sparsearch.config.tasks.task import TaskConfig
    from sparsearch.search.tasks.data_files import Rows
    from sparsearch.search.tasks.data_summary import DataSummary
    from sparsearch.search.tasks.task import Split, Task

__all__ = ["Encoded", "TaskType", "TokenLosses", "TokenTask", "cross_entropies"]


@dataclass(frozen=True)
class Encoded:
    """The rows of a task as tensors.

    Attributes:
        splits: ``train``, ``validation`` and ``test``.
        classes: Class names in the order of their indices; empty where there are none.
        warnings: What makes the scores worth less than they look.
    """

    splits: Mapping[str, Split]
    classes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


class TaskType(ABC):
    """How a kind of task is read, trained and judged. It holds nothing: one object serves all tasks of its type.

    Attributes:
        labels_tokens: Whether there is a label for each token that a model reads.
        scores_collated_rows: Whether rows that a data collator of transformers gives hold all that ``score`` needs.
    """

    labels_tokens: ClassVar[bool] = False
    scores_collated_rows: ClassVar[bool] = True

    def collated_labels(self, labels: Tensor) -> Tensor:
        """The labels of collated rows, as a data collator of transformers gives them, in the form of ``loss``."""
        return labels

    @abstractmethod
    def columns(self, config: TaskConfig) -> tuple[str, ...]:
        """Names of the columns that the rows must have, each once."""

    def columns_of(self, config: TaskConfig, split: str) -> tuple[str, ...]:
        """Those that a split must have, where not all splits need the same."""
        return self.columns(config)

    def check_model(self, model: nn.Module) -> None:  # noqa: B027 - most types take any
        """Refuse a model, as it was loaded, on which the loss would be wrong.

        Raises:
            BackboneError: If so.
        """

    def check_rows(self, model: nn.Module, task: Task) -> None:  # noqa: B027 - most models read any rows
        """Refuse a model that reads the rows of a task otherwise than they are meant.

        Raises:
            BackboneError: If so.
        """

    @abstractmethod
    def encode(
        self, config: TaskConfig, rows: Mapping[str, Rows], tokenizer: Any, limit: int
    ) -> Encoded:
        """Check the rows of the three splits and tokenise them.

        Args:
            config: The task.
            rows: All rows of each split, with the columns.
            tokenizer: The backbone's.
            limit: Tokens per row at most.

        Raises:
            DataError: If a row cannot be used, one cannot learn from the training split, or the metric has no value
                on another one.
        """

    @abstractmethod
    def summary(
        self, labels: Mapping[str, Tensor], classes: Sequence[str], warnings: Sequence[str]
    ) -> DataSummary:
        """What is told of the splits before a study begins.

        Args:
            labels: Name of a split -> its labels.
            classes: Class names.
            warnings: To be said with them.
        """

    def tokens_read(self, task: Task) -> Tensor | None:
        """Ids of the tokens that a model reads in training and validation; None where these may be any."""
        import torch

        read = [split.inputs["input_ids"].flatten() for split in (task.train, task.validation)]
        found: Tensor = torch.unique(torch.cat(read))
        return found

    def constant_answer(self, split: Split) -> Tensor | None:
        """Outputs (outputs,) that a new head begins with, whatever it reads; None for zeros."""
        return None

    @abstractmethod
    def loss(self, model: nn.Module, batch: dict[str, Tensor], precision: str) -> Tensor:
        """The mean loss of a batch, with the graph that led to it.

        Args:
            model: Of the type's model class.
            batch: As ``batches`` gives it.
            precision: Of the forward pass.
        """

    @abstractmethod
    def split_loss(self, model: nn.Module, split: Split, precision: str) -> float:
        """The mean loss over a split, without dropout and without a graph."""

    @abstractmethod
    def answers(
        self, task: Task, model: nn.Module, split: Split, precision: str
    ) -> tuple[list[Any], list[Any]]:
        """What a model says of each row of a split, and what is right: plain values for metrics of the user's own."""

    @abstractmethod
    def score(self, task: Task, model: nn.Module, split: Split, precision: str) -> float:
        """A task's metric of a model on one of its splits; a higher score is better."""


@dataclass(frozen=True)
class TokenLosses:
    """What a batch has to learn, token by token, in the order of its rows.

    Attributes:
        losses: (tokens,) cross-entropies, with the graph that led to them.
        residuals: (tokens,) norms of one-hot minus softmax, those of the losses' gradients; without a graph.
        rows: (tokens,) the place in the batch of each token's row.
    """

    losses: Tensor
    residuals: Tensor
    rows: Tensor


class TokenTask(TaskType):
    """A task type whose loss is a mean of cross-entropies, several in a row."""

    @abstractmethod
    def token_losses(
        self, model: nn.Module, batch: dict[str, Tensor], precision: str
    ) -> TokenLosses:
        """What ``loss`` is the mean of.

        Args:
            model: Of the type's model class.
            batch: As ``batches`` gives it.
            precision: Of the forward pass.
        """


def cross_entropies(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Losses of (tokens, outputs) logits, and the norms of their residuals.

    >>> losses, residuals = cross_entropies(torch.zeros(1, 4), torch.tensor([2]))
    >>> round(float(losses), 4), round(float(residuals), 4)  # log 4; (3/4, 1/4, 1/4, 1/4)
    (1.3863, 0.866)
    """
    losses = nn.functional.cross_entropy(logits, labels, reduction="none")
    with torch.no_grad():
        found = logits.softmax(-1)
        squares = found.square().sum(-1) - 2 * found.gather(-1, labels[:, None]).squeeze(-1) + 1
    return losses, squares.clamp_min(0).sqrt()
