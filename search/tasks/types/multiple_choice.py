"""Multiple choice: which of several texts goes on after a context, or answers it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from sparsearch.errors import DataError
from sparsearch.search.tasks.checks import check_texts, text_warnings
from sparsearch.search.tasks.data_files import Rows
from sparsearch.search.tasks.data_rows import SPLITS
from sparsearch.search.tasks.data_summary import DataSummary
from sparsearch.search.tasks.task import Split, Task
from sparsearch.search.tasks.types.base import Encoded, TaskType
from sparsearch.search.training.evaluate import forward, predict

if TYPE_CHECKING:
    from sparsearch.config.tasks.task import TaskConfig

__all__ = ["MultipleChoice"]


class MultipleChoice(TaskType):
    """Mean cross-entropy over the choices of a row, each read behind its context; accuracy.

    Inputs are (rows, choices, tokens). All rows of a split have as many choices, and a label is the number of one.
    """

    def columns(self, config: TaskConfig) -> tuple[str, ...]:
        """Context, choices and label."""
        assert config.context is not None, "a column of this type"
        return tuple(dict.fromkeys([config.context, *config.choices, config.label]))

    def encode(
        self, config: TaskConfig, rows: Mapping[str, Rows], tokenizer: Any, limit: int
    ) -> Encoded:
        """Contexts that are too long are cut; choices are not."""
        used = config.max_train_rows or len(rows["train"])
        parts = {**rows, "train": rows["train"].part(0, used)}
        first = self.columns(config)[0]
        splits, texts = {}, {}
        for name in SPLITS:
            columns = parts[name].columns
            check_texts(name, {first: columns[first]})
            choices = _choices(config, name, columns)
            pairs = list(zip(columns[first], choices, strict=True))
            texts[name] = {"row": ["\n".join([context, *others]) for context, others in pairs]}
            inputs = _tokenise(name, pairs, tokenizer, limit)
            lengths = inputs["attention_mask"].sum(dim=-1).amax(dim=-1)
            splits[name] = Split(inputs, lengths, _labels(config, name, columns, len(choices[0])))
        return Encoded(splits, warnings=tuple(text_warnings(texts)))

    def summary(
        self, labels: Mapping[str, Tensor], classes: Sequence[str], warnings: Sequence[str]
    ) -> DataSummary:
        """Rows alone."""
        rows = {split: len(values) for split, values in labels.items()}
        return DataSummary(rows, {}, {}, tuple(warnings))

    def loss(self, model: nn.Module, batch: dict[str, Tensor], precision: str) -> Tensor:
        """Over the choices of each row."""
        return nn.functional.cross_entropy(forward(model, batch, precision), batch["labels"])

    def split_loss(self, model: nn.Module, split: Split, precision: str) -> float:
        """Of all rows together."""
        return float(nn.functional.cross_entropy(predict(model, split, precision), split.labels))

    def score(self, task: Task, model: nn.Module, split: Split, precision: str) -> float:
        """The share of rows whose right choice has the highest logit."""
        found, right = self.answers(task, model, split, precision)
        return sum(bool(a == b) for a, b in zip(found, right, strict=True)) / len(right)

    def answers(
        self, task: Task, model: nn.Module, split: Split, precision: str
    ) -> tuple[list[Any], list[Any]]:
        """Numbers of the choices."""
        found = predict(model, split, precision).argmax(dim=-1)
        return found.tolist(), split.labels.tolist()


def _choices(
    config: TaskConfig, split: str, columns: Mapping[str, Sequence[Any]]
) -> list[list[str]]:
    """The choices of each row: those of one column of lists, or one of each of several columns."""
    if len(config.choices) > 1:
        found = [list(row) for row in zip(*(columns[c] for c in config.choices), strict=True)]
    else:
        found = list(columns[config.choices[0]])
    for row, texts in enumerate(found):
        if not isinstance(texts, list) or not all(isinstance(t, str) and t.strip() for t in texts):
            raise DataError(
                f"split {split!r}, row {row}: {', '.join(config.choices)} holds no texts to choose from: {texts!r:.60}",
                'write a list of texts in each row, ["one", "another"], or name a column for each: task.choices',
            )
        if len(texts) < 2 or len(texts) != len(found[0]):
            raise DataError(
                f"split {split!r}, row {row}: {len(texts)} choices, row 0 has {len(found[0])}",
                "give all rows of a split as many choices, two or more",
            )
    return found


def _labels(
    config: TaskConfig, split: str, columns: Mapping[str, Sequence[Any]], choices: int
) -> Tensor:
    """(rows,) numbers of the right choices; text that is a whole number is one."""
    allowed: dict[Any, int] = {str(i): i for i in range(choices)} | {i: i for i in range(choices)}
    found = []
    for row, value in enumerate(columns[config.label]):
        if type(value) not in (int, str) or value not in allowed:
            raise DataError(
                f"split {split!r}, row {row}: label {value!r:.60} is no number of a choice, 0 to {choices - 1}",
                "number the choices from 0, or name the column that does: task.label",
            )
        found.append(allowed[value])
    return torch.tensor(found)


def _tokenise(
    split: str, pairs: Sequence[tuple[str, list[str]]], tokenizer: Any, limit: int
) -> dict[str, Tensor]:
    """(rows, choices, tokens) of each input: a context, then one of its choices."""
    count, room = len(pairs[0][1]), limit - tokenizer.num_special_tokens_to_add(pair=True)
    contexts = [context for context, choices in pairs for _ in choices]
    choices = [choice for _, choices in pairs for choice in choices]
    alone = tokenizer(choices, add_special_tokens=False, verbose=False)["input_ids"]
    if longer := [number for number, ids in enumerate(alone) if len(ids) >= room]:
        raise DataError(
            f"split {split!r}, row {longer[0] // count}: a choice has {len(alone[longer[0]])} tokens, and leaves "
            f"nothing of {limit} to its context",
            "raise task.max_length if the model takes more, or shorten the choices",
        )
    encoded = tokenizer(
        contexts, choices, truncation="only_first", max_length=limit, padding="longest"
    )
    inputs = {name: torch.tensor(values) for name, values in encoded.items()}
    return {name: values.reshape(len(pairs), count, -1) for name, values in inputs.items()}
