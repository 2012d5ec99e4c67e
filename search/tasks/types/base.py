"""What a task type is: from rows to tensors, from a batch to a loss, from a model to a score."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn

    from sparsearch.config.tasks.task import TaskConfig
    from sparsearch.search.tasks.data_files import Rows
    from sparsearch.search.tasks.data_summary import DataSummary
    from sparsearch.search.tasks.task import Split, Task

__all__ = ["Encoded", "TaskType"]


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
    """How a kind of task is read, trained and judged. It holds nothing: one object serves all tasks of its type."""

    @abstractmethod
    def columns(self, config: TaskConfig) -> tuple[str, ...]:
        """Names of the columns that the rows must have, each once."""

    def check_model(self, model: nn.Module) -> None:  # noqa: B027 - most types take any
        """Refuse a model, as it was loaded, on which the loss would be wrong.

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
    def score(self, task: Task, model: nn.Module, split: Split, precision: str) -> float:
        """A task's metric of a model on one of its splits; a higher score is better."""
