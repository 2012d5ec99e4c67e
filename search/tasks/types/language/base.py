"""What tasks share whose model writes text: the loss of its tokens, and how texts are judged."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from sparsearch.errors import DataError
from sparsearch.search.tasks.data_summary import DataSummary
from sparsearch.search.tasks.task import Split, Task, batches
from sparsearch.search.tasks.types.base import TokenLosses, TokenTask
from sparsearch.search.tasks.types.language.generation import generate
from sparsearch.search.tasks.types.language.text_metrics import check_references, text_score
from sparsearch.search.training.language_head import check_head, learnt_losses, token_loss

if TYPE_CHECKING:
    from sparsearch.config.tasks.task import TaskConfig

__all__ = ["LanguageTask", "judged_by", "read_references"]

_EVAL_BATCH = 32


class LanguageTask(TokenTask):
    """Mean cross-entropy of the learnt tokens, each token counted once.

    A score is the loss or the perplexity with the sign turned, or a metric of texts that the model writes. The
    language head is the backbone's own, and frozen.
    """

    @abstractmethod
    def prompts(self, split: Split) -> list[Tensor]:
        """The tokens (n,) of each row after which the model is to write."""

    def inputs(self, model: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """What the model is given of a batch, with ``labels`` that stand at the tokens that it is given."""
        return batch

    def check_model(self, model: nn.Module) -> None:
        """The head must give the logits that the model gives."""
        check_head(model)

    def summary(
        self, labels: Mapping[str, Tensor], classes: Sequence[str], warnings: Sequence[str]
    ) -> DataSummary:
        """Rows alone."""
        return DataSummary(
            {s: len(values) for s, values in labels.items()}, {}, {}, tuple(warnings)
        )

    def loss(self, model: nn.Module, batch: dict[str, Tensor], precision: str) -> Tensor:
        """Mean over the learnt tokens of the batch."""
        total, count = token_loss(model, self.inputs(model, batch), precision)
        return total / count

    def token_losses(
        self, model: nn.Module, batch: dict[str, Tensor], precision: str
    ) -> TokenLosses:
        """Of the learnt tokens."""
        return learnt_losses(model, self.inputs(model, batch), precision)

    @torch.no_grad()
    def split_loss(self, model: nn.Module, split: Split, precision: str) -> float:
        """Mean over the learnt tokens of the split."""
        model.eval()
        device = next(model.parameters()).device
        total, tokens = 0.0, 0
        for batch in batches(split, _EVAL_BATCH, device):
            loss, count = token_loss(model, self.inputs(model, batch), precision)
            total, tokens = total + float(loss), tokens + count
        return total / tokens

    def answers(
        self, task: Task, model: nn.Module, split: Split, precision: str
    ) -> tuple[list[Any], list[Any]]:
        """The text that is written in each row, and the right ones."""
        written = generate(task, model, split, self.prompts(split), precision)
        return written, split.references["references"]

    def score(self, task: Task, model: nn.Module, split: Split, precision: str) -> float:
        """Of all written texts; or the loss, or the perplexity exp(loss), with the sign turned."""
        if split.references:
            return text_score(task.metric, *self.answers(task, model, split, precision))
        loss = self.split_loss(model, split, precision)
        return -loss if task.metric == "loss" else -math.exp(min(loss, 700.0))

    def tokens_read(self, task: Task) -> Tensor | None:
        """Any, where the model reads what it has written."""
        return None if task.validation.references else super().tokens_read(task)


def read_references(config: TaskConfig, split: str, values: Sequence[Any]) -> list[list[str]]:
    """The right answers of each row, from a column of lists.

    Raises:
        DataError: If a row holds none, or anything but text.
    """
    for row, texts in enumerate(values):
        if not isinstance(texts, list) or not texts or not all(map(_is_text, texts)):
            raise DataError(
                f"split {split!r}, row {row}: column {config.references!r} holds no list of texts: {texts!r:.60}",
                'write the right answers of each row in a list, ["one", "another"]; none may be empty',
            )
    return [list(texts) for texts in values]


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def judged_by(
    config: TaskConfig,
    split: str,
    references: list[list[str]],
    prompts: Sequence[Tensor],
    limit: int,
) -> dict[str, Any]:
    """What scores of written texts need of a split beside its tensors.

    Args:
        config: The task.
        split: Name of the split, for messages.
        references: Right answers of each row.
        prompts: Tokens of each row that stand before what is written; none where that has a sequence of its own.
        limit: Tokens of a sequence at most.

    Raises:
        DataError: If a sequence would get too long, the metric has no value, or what computes it is not installed.
    """
    check_references(config.metric, split, references)
    most, longest = config.max_new_tokens, max(map(len, prompts), default=1)
    if empty := [row for row, prompt in enumerate(prompts) if not len(prompt)]:
        raise DataError(
            f"split {split!r}, row {empty[0]}: the prompt is empty, there is nothing to write after",
            "remove these rows, or write a prompt",
        )
    if longest + most > limit:
        raise DataError(
            f"split {split!r}: a prompt has {longest} tokens, and task.max_new_tokens {most} more are above the "
            f"{limit} that a row may have",
            f"set task.max_length: {longest + most} if the model takes as many, or lower task.max_new_tokens",
        )
    return {"references": references, "max_new_tokens": most}
