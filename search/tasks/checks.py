"""Task checks: what a task's splits hold, and whether one can learn from them and measure on them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from sparsearch.config.study import TaskConfig
from sparsearch.config.tasks.imports import is_import_path
from sparsearch.errors import DataError
from sparsearch.search.tasks.data_rows import SPLITS
from sparsearch.search.tasks.data_summary import DataSummary

__all__ = [
    "check_enough_rows",
    "check_labels_vary",
    "check_metric",
    "check_texts",
    "check_tokens",
    "check_vocabulary",
    "class_warnings",
    "constant",
    "summarise_labels",
    "target_warnings",
    "text_warnings",
]


def summarise_labels(
    labels: Mapping[str, Tensor], classes: Sequence[str], warnings: Sequence[str] = ()
) -> DataSummary:
    """The counts of classes, or the range of targets where there are no classes.

    Args:
        labels: Name of a split -> (rows,) class indices or targets.
        classes: Class names, empty for regression.
        warnings: To be said with them.
    """
    rows = {split: len(values) for split, values in labels.items()}
    if not classes:
        ranges = {s: (float(v.min()), float(v.mean()), float(v.max())) for s, v in labels.items()}
        return DataSummary(rows, {}, ranges, tuple(warnings))
    counts = [torch.bincount(v, minlength=len(classes)).tolist() for v in labels.values()]
    by_class = dict(zip(classes, zip(*counts, strict=True), strict=True))
    return DataSummary(rows, by_class, {}, tuple(warnings))


def check_enough_rows(config: TaskConfig, rows: int) -> None:
    """A search halves the training split.

    Raises:
        DataError: If it has one row.
    """
    if min(rows, config.max_train_rows or rows) < 2:
        raise _too_little(config, rows, "one row, which a search cannot halve")


def check_labels_vary(config: TaskConfig, labels: Tensor, rows: int, alike: str) -> None:
    """Rows of one class, or of one target, teach nothing.

    Args:
        config: The task.
        labels: (rows,) of the training rows that are used.
        rows: How many the training split has.
        alike: What they have in common if all have one label.

    Raises:
        DataError: If the labels are all the same.
    """
    if constant(labels):
        raise _too_little(config, rows, f"{len(labels)} rows, all {alike}")


def _too_little(config: TaskConfig, rows: int, left: str) -> DataError:
    limited = config.max_train_rows is not None and config.max_train_rows < rows
    return DataError(
        f"split 'train' of task {config.title!r} is left with {left}",
        "raise task.max_train_rows, or shuffle the rows of the file: the first ones are taken"
        if limited
        else "add rows to the training split, or name another one: task.data.splits.train",
    )


def check_metric(config: TaskConfig, split: str, held: str) -> None:
    """The metric must have a value on a split, whatever a model predicts there; nobody knows of the user's own.

    Args:
        config: The task.
        split: Its name.
        held: What the split holds that leaves the metric without one; empty if it has one.

    Raises:
        DataError: If it has none.
    """
    if held and not is_import_path(config.metric):
        raise DataError(
            f"split {split!r}: column {config.tags or config.label!r} {held}, where {config.metric} has no value",
            f"shuffle the rows before they are split, or name another split: task.data.splits.{split}",
        )


def class_warnings(config: TaskConfig, summary: DataSummary) -> list[str]:
    """Classes that cannot be learnt or look like one, and splits of one class, on which any constant guess is right."""
    warnings = [
        f"class {name!r} has no row in split 'train': it cannot be learnt"
        for name, counts in summary.classes.items()
        if counts[0] == 0
    ]
    alike: dict[str, list[str]] = {}
    for name in summary.classes:
        alike.setdefault(_plain(name), []).append(name)
    warnings += [
        f"classes {' and '.join(map(repr, names))} differ by case, blanks or quotes alone: they are learnt as "
        f"{len(names)}"
        for names in alike.values()
        if len(names) > 1
    ]
    for i, split in enumerate(SPLITS):
        held = [name for name, counts in summary.classes.items() if counts[i]]
        if len(held) == 1 and summary.classes[held[0]][i] == summary.rows[split]:
            warnings.append(
                f"split {split!r} holds the class {held[0]!r} alone: who always guesses it has the best "
                f"{config.metric}"
            )
    return warnings


_SPREADS = (0.1, 10.0)
"""Standard deviations of targets that learning rates are made for."""


def target_warnings(config: TaskConfig, targets: Tensor) -> list[str]:
    """Targets in units that no learning rate fits."""
    spread = float(targets.std())
    if _SPREADS[0] <= spread <= _SPREADS[1]:
        return []
    return [
        f"targets in column {config.label!r} have a standard deviation of {spread:.3g}; learning rates are made "
        f"for some {_SPREADS[0]:g} to {_SPREADS[1]:g}: divide the targets by a number that brings them there"
    ]


def _plain(name: str) -> str:
    """A class name without what a slip of the pen adds."""
    return " ".join(name.strip(" \t\"'").casefold().split())


def check_texts(split: str, columns: Mapping[str, Sequence[Any]]) -> None:
    """Each row must hold text, and not all of them the empty one.

    Raises:
        DataError: Names the first row that does not.
    """
    for name, column in columns.items():
        for row, text in enumerate(column):
            if not isinstance(text, str):
                raise DataError(
                    f"split {split!r}, row {row}: column {name!r} holds no text: {text!r:.60}",
                    "write text in each row: in JSON in quotes",
                )
    if _empty(columns) == len(next(iter(columns.values()))):
        raise DataError(
            f"every row of split {split!r} has an empty text: {', '.join(columns)}",
            "name the columns that hold the text: task.text",
        )


def text_warnings(texts: Mapping[str, Mapping[str, Sequence[str]]]) -> list[str]:
    """Rows without text, and rows that stand in two splits.

    Args:
        texts: Name of a split -> name of a text column -> the text of each row.
    """
    warnings = [
        f"{empty} of {_count(columns)} rows of split {split!r} have an empty text"
        for split, columns in texts.items()
        if (empty := _empty(columns))
    ]
    for one, other in combinations(texts, 2):
        wanted = set(_rows(texts[other]))
        shared = wanted.intersection(_rows(texts[one]))
        if count := sum(row in shared for row in _rows(texts[other])):
            warnings.append(
                f"{count} of {_count(texts[other])} rows of split {other!r} stand in split {one!r} too: "
                "how a model does on these does not tell how it does on unseen rows"
            )
    return warnings


def check_tokens(split: str, tokenizer: Any, ids: Tensor, lengths: Tensor) -> None:
    """Rows that a classifier cannot pool: without a token, or with the text of a special token in them.

    Raises:
        DataError: Names the first such row.
    """
    empty = (lengths == 0).nonzero().flatten()
    if len(empty):
        raise DataError(
            f"split {split!r}, row {int(empty[0])}: the text is empty ({len(empty)} such rows)"
        )
    if tokenizer.eos_token_id is None or tokenizer.eos_token_id == tokenizer.pad_token_id:
        return
    ends = (ids == tokenizer.eos_token_id).sum(dim=1)
    odd = (ends != ends.mode().values).nonzero().flatten()
    if len(odd):
        raise DataError(
            f"split {split!r}, row {int(odd[0])}: the text contains {tokenizer.eos_token!r}, which ends an "
            f"input ({len(odd)} such rows)",
            "remove it from the text",
        )


def check_vocabulary(split: str, ids: Tensor, tokenizer: Any, vocabulary: int) -> None:
    """Tokens that the model has no embedding of.

    Args:
        split: Its name.
        ids: (rows, max length) token ids, padding among them.
        tokenizer: Names the token.
        vocabulary: Rows of the model's embeddings.

    Raises:
        DataError: Names the first row with such a token.
    """
    above = (ids >= vocabulary).any(dim=1).nonzero().flatten()
    if len(above):
        row = ids[above[0]]
        token = int(row[row >= vocabulary][0])
        raise DataError(
            f"split {split!r}, row {int(above[0])}: the tokenizer writes token {token} "
            f"({tokenizer.convert_ids_to_tokens(token)!r}), but the model has embeddings of tokens 0 to "
            f"{vocabulary - 1} ({len(above)} such rows)",
            "use the tokenizer that the model was trained with, or resize the embeddings and save the model",
        )


def constant(labels: Tensor) -> bool:
    """Whether all labels are one."""
    return bool((labels == labels[0]).all())


def _rows(columns: Mapping[str, Sequence[str]]) -> Iterable[tuple[str, ...]]:
    return zip(*columns.values(), strict=True)


def _count(columns: Mapping[str, Sequence[str]]) -> int:
    return len(next(iter(columns.values())))


def _empty(columns: Mapping[str, Sequence[str]]) -> int:
    """Rows whose texts hold nothing but blanks."""
    return sum(not any(map(str.strip, row)) for row in _rows(columns))
