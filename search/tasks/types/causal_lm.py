"""Causal language modelling: a prompt and its completion, whole texts, or conversations."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor, nn

from sparsearch.errors import DataError
from sparsearch.search.tasks.checks import check_texts, text_warnings
from sparsearch.search.tasks.data_files import Rows
from sparsearch.search.tasks.data_rows import SPLITS
from sparsearch.search.tasks.data_summary import DataSummary
from sparsearch.search.tasks.task import Split, Task, batches
from sparsearch.search.tasks.types.base import Encoded, TokenLosses, TokenTask
from sparsearch.search.tasks.types.chat import conversation
from sparsearch.search.tasks.types.token_rows import IGNORED, padded_split
from sparsearch.search.training.language_head import check_head, learnt_losses, token_loss

if TYPE_CHECKING:
    from sparsearch.config.tasks.task import TaskConfig

__all__ = ["CausalLM"]

_EVAL_BATCH = 32

Part: TypeAlias = tuple[str, bool]
"""Text of a row, and whether it is learnt."""


class CausalLM(TokenTask):
    """Mean cross-entropy of the completion's tokens, each token counted once; the prompt's are read, not learnt.

    The language head is the backbone's own, and frozen. A score is the loss or the perplexity with the sign turned.
    """

    def columns(self, config: TaskConfig) -> tuple[str, ...]:
        """Those of the way in which the rows are given."""
        named = [*config.text, config.prompt, config.completion, config.messages]
        return tuple(dict.fromkeys(name for name in named if name is not None))

    def check_model(self, model: nn.Module) -> None:
        """The head must give the logits that the model gives."""
        check_head(model)

    def encode(
        self, config: TaskConfig, rows: Mapping[str, Rows], tokenizer: Any, limit: int
    ) -> Encoded:
        """Prompt and completion are tokenised apart, so that their border is one between tokens."""
        used = config.max_train_rows or len(rows["train"])
        parts = {**rows, "train": rows["train"].part(0, used)}
        splits, texts = {}, {}
        for name in SPLITS:
            found = _parts(config, name, parts[name], tokenizer)
            texts[name] = {"row": ["".join(text for text, _ in row) for row in found]}
            splits[name] = _tokenise(config, name, found, tokenizer, limit)
        return Encoded(splits, warnings=tuple(text_warnings(texts)))

    def summary(
        self, labels: Mapping[str, Tensor], classes: Sequence[str], warnings: Sequence[str]
    ) -> DataSummary:
        """Rows alone."""
        return DataSummary(
            {s: len(values) for s, values in labels.items()}, {}, {}, tuple(warnings)
        )

    def loss(self, model: nn.Module, batch: dict[str, Tensor], precision: str) -> Tensor:
        """Mean over the learnt tokens of the batch."""
        total, count = token_loss(model, batch, precision)
        return total / count

    def token_losses(
        self, model: nn.Module, batch: dict[str, Tensor], precision: str
    ) -> TokenLosses:
        """Of the learnt tokens."""
        return learnt_losses(model, batch, precision)

    @torch.no_grad()
    def split_loss(self, model: nn.Module, split: Split, precision: str) -> float:
        """Mean over the learnt tokens of the split."""
        model.eval()
        device = next(model.parameters()).device
        total, tokens = 0.0, 0
        for batch in batches(split, _EVAL_BATCH, device):
            loss, count = token_loss(model, batch, precision)
            total, tokens = total + float(loss), tokens + count
        return total / tokens

    def score(self, task: Task, model: nn.Module, split: Split, precision: str) -> float:
        """The loss, or the perplexity exp(loss), with the sign turned."""
        loss = self.split_loss(model, split, precision)
        return -loss if task.metric == "loss" else -math.exp(min(loss, 700.0))


def _parts(config: TaskConfig, split: str, rows: Rows, tokenizer: Any) -> list[list[Part]]:
    """Each row as texts one after the other."""
    columns = rows.columns
    if config.messages is not None:
        return [
            conversation(tokenizer, split, number, messages)
            for number, messages in enumerate(columns[config.messages])
        ]
    texts = {name: columns[name] for name in CausalLM().columns(config)}
    check_texts(split, texts)
    if config.text:
        return [[(text, True)] for text in texts[config.text[0]]]
    return [
        [(prompt, False), (answer, True)] for prompt, answer in zip(*texts.values(), strict=True)
    ]


def _tokenise(
    config: TaskConfig, split: str, rows: Sequence[Sequence[Part]], tokenizer: Any, limit: int
) -> Split:
    """A label is the token at its place, or ``IGNORED`` where it is not learnt."""
    begin, end = _ends(tokenizer)
    whole = config.messages is None  # a chat template writes begin and end itself
    found = []
    for row in rows:
        tokens, labels = (list(begin), [IGNORED] * len(begin)) if whole else ([], [])
        for text, is_learnt in row:
            ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
            tokens += ids
            labels += ids if is_learnt else [IGNORED] * len(ids)
        if whole and any(label != IGNORED for label in labels):
            tokens, labels = tokens + end, labels + end
        found.append((tokens, labels))
    _check_learnt(split, [labels for _, labels in found])
    return padded_split(config, split, found, tokenizer, limit)


def _ends(tokenizer: Any) -> tuple[list[int], list[int]]:
    """The tokens that begin and end a text: as the tokenizer adds them; an end in any case where it has one."""
    alone = tokenizer("")["input_ids"]
    end = tokenizer.eos_token_id
    begin = [token for token in alone if token != end or token == tokenizer.bos_token_id]
    return begin, [] if end is None else [end]


def _check_learnt(split: str, labels: Sequence[Sequence[int]]) -> None:
    """Each row must have a token to learn that follows another one."""
    empty = [row for row, tokens in enumerate(labels) if all(t == IGNORED for t in tokens[1:])]
    if empty:
        raise DataError(
            f"split {split!r}, row {empty[0]}: the completion is empty, there is no token to learn "
            f"({len(empty)} such rows)",
            "remove these rows, or name the column that holds the completions: task.completion",
        )
