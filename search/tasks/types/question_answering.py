"""Extractive question answering: where in a text the answer stands, judged as SQuAD judges."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from sparsearch.errors import DataError
from sparsearch.search.tasks.checks import check_texts, text_warnings
from sparsearch.search.tasks.data_files import Rows
from sparsearch.search.tasks.data_rows import SPLITS
from sparsearch.search.tasks.data_summary import DataSummary
from sparsearch.search.tasks.task import Split, batches
from sparsearch.search.tasks.types.answers import answer_score
from sparsearch.search.tasks.types.base import Encoded, TokenLosses, TokenTask, cross_entropies
from sparsearch.search.training.evaluate import forward

if TYPE_CHECKING:
    from sparsearch.config.tasks.task import TaskConfig
    from sparsearch.search.tasks.task import Task

__all__ = ["QuestionAnswering"]

_EVAL_BATCH = 64
_LONGEST_ANSWER = 30
"""Tokens, as in the scripts of transformers."""
_SHAPE = 'write answers as SQuAD does: {"text": ["Paris"], "answer_start": [10]}'


@dataclass(frozen=True)
class _Answers:
    """Answers of one row, all right: their texts, and where each begins in the context."""

    texts: list[str]
    starts: list[int]


class QuestionAnswering(TokenTask):
    """Mean cross-entropy of the first and the last token of the answer; F1 of its words, or exact matches.

    A context that is too long is read in windows that overlap. A window without the answer points to its first token.
    """

    scores_collated_rows = False

    def columns(self, config: TaskConfig) -> tuple[str, ...]:
        """Question, context and answers."""
        named = (config.question, config.context, config.answers)
        return tuple(dict.fromkeys(name for name in named if name is not None))

    def encode(
        self, config: TaskConfig, rows: Mapping[str, Rows], tokenizer: Any, limit: int
    ) -> Encoded:
        """One row for each window; what scores need of validation and test goes with them."""
        if not tokenizer.is_fast:
            raise DataError(
                "question answering needs a tokenizer that says where its tokens stand in the text",
                "choose a model whose folder has a tokenizer.json",
            )
        used = config.max_train_rows or len(rows["train"])
        parts = {**rows, "train": rows["train"].part(0, used)}
        question, context, answers = self.columns(config)
        texts, splits = {}, {}
        for name in SPLITS:
            columns = parts[name].columns
            texts[name] = {column: columns[column] for column in (question, context)}
            check_texts(name, texts[name])
            found = [
                _answers(name, number, text, value)
                for number, (text, value) in enumerate(
                    zip(columns[context], columns[answers], strict=True)
                )
            ]
            _check_questions(name, columns[question], tokenizer, limit)
            asked = (list(columns[question]), list(columns[context]), found)
            splits[name] = _windows(asked, tokenizer, limit, judged=name != "train")
        return Encoded(splits, warnings=tuple(text_warnings(texts)))

    def summary(
        self, labels: Mapping[str, Tensor], classes: Sequence[str], warnings: Sequence[str]
    ) -> DataSummary:
        """Windows alone."""
        rows = {split: len(values) for split, values in labels.items()}
        return DataSummary(rows, {}, {}, tuple(warnings))

    def loss(self, model: nn.Module, batch: dict[str, Tensor], precision: str) -> Tensor:
        """Mean of both ends over the windows of the batch."""
        logits = forward(model, batch, precision)  # (windows, tokens, 2)
        return nn.functional.cross_entropy(logits, batch["labels"])

    def token_losses(
        self, model: nn.Module, batch: dict[str, Tensor], precision: str
    ) -> TokenLosses:
        """Of both ends of each window, which are chosen among its tokens."""
        logits = forward(model, batch, precision).mT.flatten(0, 1)
        losses, residuals = cross_entropies(logits, batch["labels"].flatten())
        rows = torch.arange(len(losses), device=losses.device) // 2
        return TokenLosses(losses, residuals, rows)

    @torch.no_grad()
    def split_loss(self, model: nn.Module, split: Split, precision: str) -> float:
        """Mean of both ends over the windows of the split."""
        model.eval()
        total = 0.0
        for batch in batches(split, _EVAL_BATCH, next(model.parameters()).device):
            total += float(self.loss(model, batch, precision)) * len(batch["rows"])
        return total / len(split)

    @torch.no_grad()
    def answers(
        self, task: Task, model: nn.Module, split: Split, precision: str
    ) -> tuple[list[Any], list[Any]]:
        """Of each question the best span of all its windows, and its right answers."""
        model.eval()
        facts = split.references
        best: dict[int, tuple[float, str]] = {}
        for batch in batches(split, _EVAL_BATCH, next(model.parameters()).device):
            logits = forward(model, batch, precision).cpu()
            for row, ends in zip(batch["rows"].tolist(), logits, strict=True):
                number = facts["question"][row]
                found = _best_span(ends, facts["offsets"][row])
                if found is not None and found[0] > best.get(number, (-float("inf"), ""))[0]:
                    start, end = found[1]
                    best[number] = found[0], facts["contexts"][number][start:end]
        right = facts["answers"]
        return [best.get(number, (0.0, ""))[1] for number in range(len(right))], right

    def score(self, task: Task, model: nn.Module, split: Split, precision: str) -> float:
        """Mean over the questions, of each against the nearest answer."""
        answers = self.answers(task, model, split, precision)
        scores = [answer_score(task.metric, *pair) for pair in zip(*answers, strict=True)]
        return sum(scores) / len(scores)


def _check_questions(split: str, questions: Sequence[str], tokenizer: Any, limit: int) -> None:
    """Each question must leave half of a window to the context."""
    ids = tokenizer(list(questions), add_special_tokens=False, verbose=False)["input_ids"]
    longer = [row for row, tokens in enumerate(ids) if len(tokens) > limit // 2]
    if longer:
        raise DataError(
            f"split {split!r}, row {longer[0]}: the question takes {len(ids[longer[0]])} of {limit} tokens "
            f"({len(longer)} such rows)",
            "raise task.max_length, or shorten the questions",
        )


def _answers(split: str, number: int, context: str, value: Any) -> _Answers:
    """The answers of a row, after the check that they stand where they say."""
    at = f"split {split!r}, row {number}"
    texts, starts = (
        (value.get("text"), value.get("answer_start"))
        if isinstance(value, Mapping)
        else (None, None)
    )
    if not isinstance(texts, list) or not isinstance(starts, list) or len(texts) != len(starts):
        raise DataError(f"{at}: no answers: {value!r:.60}", _SHAPE)
    if not texts:
        raise DataError(
            f"{at}: there is no answer", "remove the questions that the context does not answer"
        )
    for text, start in zip(texts, starts, strict=True):
        if not text or not isinstance(start, int) or context[start : start + len(text)] != text:
            raise DataError(
                f"{at}: the answer {text!r:.40} does not stand at {start!r} in the context",
                "answer_start counts characters from 0",
            )
    return _Answers(texts, starts)


def _windows(
    asked: tuple[list[str], list[str], list[_Answers]], tokenizer: Any, limit: int, *, judged: bool
) -> Split:
    """Questions with windows of their contexts, which overlap by a quarter of what a window may hold."""
    questions, contexts, answers = asked
    encoded = tokenizer(
        questions,
        contexts,
        truncation="only_second",
        max_length=limit,
        stride=limit // 4,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
        padding="longest",
    )
    of = list(encoded.pop("overflow_to_sample_mapping"))
    offsets = [
        [
            span if part == 1 else None
            for span, part in zip(row, encoded.sequence_ids(i), strict=True)
        ]
        for i, row in enumerate(encoded.pop("offset_mapping"))
    ]
    inputs = {k: torch.tensor(v) for k, v in encoded.items()}
    labels = [
        _ends(row, answers[n].starts[0], answers[n].texts[0])
        for row, n in zip(offsets, of, strict=True)
    ]
    references: dict[str, Any] = {}
    if judged:
        references = {
            "question": of,
            "offsets": offsets,
            "contexts": contexts,
            "answers": [a.texts for a in answers],
        }
    lengths = inputs["attention_mask"].sum(dim=1)
    return Split(inputs, lengths, torch.tensor(labels), references=references)


def _ends(offsets: Sequence[tuple[int, int] | None], start: int, text: str) -> tuple[int, int]:
    """The first and the last token of an answer in a window; (0, 0) where it is not wholly inside."""
    end = start + len(text)
    inside = [
        token
        for token, span in enumerate(offsets)
        if span is not None and span[0] < end and span[1] > start
    ]
    spans = [span for span in (offsets[token] for token in inside) if span is not None]
    if not spans or spans[0][0] > start or spans[-1][1] < end:
        return 0, 0
    return inside[0], inside[-1]


def _best_span(
    logits: Tensor, offsets: Sequence[Sequence[int] | None]
) -> tuple[float, tuple[int, int]] | None:
    """The score and the characters of the best span of the context, at most 30 tokens long."""
    tokens = torch.tensor([i for i, span in enumerate(offsets[: len(logits)]) if span is not None])
    if not len(tokens):
        return None
    start, end = logits[tokens].unbind(-1)
    sums = (start[:, None] + end[None, :]).triu()
    allowed = torch.ones_like(sums, dtype=torch.bool).triu().tril(_LONGEST_ANSWER - 1)
    place = int(sums.masked_fill(~allowed, -torch.inf).argmax())
    first, last = divmod(place, len(tokens))
    spans = [offsets[int(tokens[i])] for i in (first, last)]
    assert spans[0] is not None and spans[1] is not None, "tokens of the context"
    return float(sums[first, last]), (spans[0][0], spans[1][1])
