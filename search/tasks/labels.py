"""Labels: one table of classes for all splits, or the numbers to predict."""

from __future__ import annotations

import math
import numbers
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from sparsearch.config.study import TaskConfig
from sparsearch.errors import DataError
from sparsearch.search.tasks.data_files import Rows, whole_numbers

__all__ = ["ClassTable", "class_table", "label_text", "targets"]

_Labels: TypeAlias = Mapping[str, Sequence[Any]]
"""Name of a split -> the label of each row."""

_KINDS = {str: "text", bool: "true or false", int: "whole numbers", float: "decimal numbers"}
_REFUSED = {"list": "a list", "dict": "an object"}
_RELABEL = "correct the rows, or choose a labelled split (task.data.splits)"


def label_text(value: str | bool | int | float) -> str:
    """A label as JSON writes it, without quotes.

    >>> label_text(True), label_text(1), label_text(1.0), label_text("01")
    ('true', '1', '1.0', '01')
    """
    return str(value).lower() if isinstance(value, bool) else str(value)


@dataclass(frozen=True)
class ClassTable:
    """The classes of a task, and the label of every row.

    Attributes:
        classes: In the order of their indices; numbers where the labels are whole numbers.
        labels: Name of a split -> labels.
    """

    classes: tuple[Any, ...]
    labels: _Labels

    @property
    def names(self) -> tuple[str, ...]:
        """Class names."""
        return tuple(map(label_text, self.classes))

    def indices(self, split: str) -> Tensor:
        """(rows,) the class of each row of a split.

        Raises:
            DataError: If a label is none of the classes.
        """
        index = {name: i for i, name in enumerate(self.names)}
        labels = self.labels[split]
        outside = [(row, v) for row, v in enumerate(labels) if label_text(v) not in index]
        if outside:
            row, value = outside[0]
            shown = ", ".join(map(repr, self.classes[:10])) + (
                ", ..." if len(self.classes) > 10 else ""
            )
            raise DataError(
                f"split {split!r}, row {row}: label {value!r} is outside the classes {shown} "
                f"({len(outside)} such rows)",
                "correct the rows, list the classes (task.labels: [...]), or choose a labelled split "
                "(task.data.splits)",
            )
        return torch.tensor([index[label_text(v)] for v in labels])


def class_table(config: TaskConfig, rows: Mapping[str, Rows]) -> ClassTable:
    """One table of classes for all splits.

    The classes are ``task.labels``; else those that the training split declares; else its labels. Labels are
    compared as text. They count as whole numbers only if each label of each split is one.

    Args:
        config: The task.
        rows: The three splits, with the label column.

    Raises:
        DataError: If a label is missing or no text or number, the labels of the splits are of different types, there
            are fewer than two classes, or whole numbers have gaps.
    """
    column = config.label
    declared = rows["train"].class_names.get(column)
    labels: _Labels
    if config.labels is not None and all(type(label) is int for label in config.labels):
        labels = _class_numbers(rows, column)
    else:
        labels = {split: _class_names(data, column) for split, data in rows.items()}
    _check_labels(column, labels, empty_is_class="" in (config.labels or ()))
    if config.labels is not None:
        return ClassTable(_two_or_more(config.labels), labels)
    _check_one_kind(column, labels)
    if declared is not None:
        return ClassTable(_two_or_more(declared), labels)
    if not rows["train"].typed and whole_numbers(labels.values()):
        labels = {split: list(map(int, values)) for split, values in labels.items()}
    return ClassTable(_two_or_more(_classes_found(set(labels["train"]))), labels)


def targets(config: TaskConfig, split: str, values: Sequence[Any]) -> Tensor:
    """(rows,) the numbers to predict; text that is a number is one.

    Raises:
        DataError: If a row holds no finite number.
    """
    found = torch.tensor([_number(value) for value in values])
    wrong = found.isfinite().logical_not().nonzero().flatten().tolist()
    if wrong:
        raise DataError(
            f"split {split!r}, row {wrong[0]}: {config.label!r} must be numbers, finite ones: "
            f"{values[wrong[0]]!r:.60} ({len(wrong)} such rows)",
            _RELABEL,
        )
    return found


def _number(value: Any) -> float:
    """A number or its text, NaN for anything else."""
    plain = isinstance(value, str) and value.isascii() and "_" not in value
    if not plain and (isinstance(value, bool) or not isinstance(value, numbers.Number)):
        return math.nan
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan


def _class_names(rows: Rows, column: str) -> Sequence[Any]:
    """Labels, declared classes by their names."""
    names, values = rows.class_names.get(column), rows.columns[column]
    if names is None:
        return values
    return [names[v] if v is not None and v >= 0 else None for v in values]


def _class_numbers(rows: Mapping[str, Rows], column: str) -> _Labels:
    """Labels, declared classes by their numbers, which must mean the same in all splits."""
    if len({data.class_names.get(column) for data in rows.values()}) > 1:
        raise DataError(
            f"the splits number the classes of {column!r} differently",
            "list the classes by name: task.labels: [...]",
        )
    return {
        split: [
            None if v == -1 and column in data.class_names else v for v in data.columns[column]
        ]
        for split, data in rows.items()
    }


def _check_labels(column: str, labels: _Labels, *, empty_is_class: bool) -> None:
    """Refuse rows without a label, and labels that are no text or number."""

    def missing(value: Any) -> bool:
        return value is None or value != value or (value == "" and not empty_is_class)

    for split, row, value in _rows_of(labels):
        if missing(value):
            count = sum(map(missing, labels[split]))
            raise DataError(
                f"split {split!r} has rows without a {column!r}: row {row} ({count} such rows)",
                _RELABEL,
            )
        if not isinstance(value, str | int | float):
            kind = _REFUSED.get(type(value).__name__, type(value).__name__)
            raise DataError(
                f"split {split!r}, row {row}: column {column!r} holds {kind}, {value!r:.60}; a label "
                "is text, a number, true or false",
                "write one class in each row; several labels a row are not supported",
            )


def _check_one_kind(column: str, labels: _Labels) -> None:
    """Refuse labels that are text here and numbers there: nobody knows whether they mean the same."""
    first: dict[type, str] = {}
    for split, row, value in _rows_of(labels):
        kind = _KINDS[type(value)]
        first.setdefault(type(value), f"{kind} (split {split!r}, row {row}: {value!r})")
    if len(first) > 1:
        raise DataError(
            f"column {column!r} holds {' and '.join(first.values())}",
            "write labels alike in all splits, or list the classes: task.labels: [...]",
        )


def _rows_of(labels: _Labels) -> Iterator[tuple[str, int, Any]]:
    return ((split, row, v) for split, values in labels.items() for row, v in enumerate(values))


def _two_or_more(classes: Sequence[Any]) -> tuple[Any, ...]:
    if len(classes) < 2 or len(set(map(label_text, classes))) != len(classes):
        raise DataError(
            f"a classification needs two classes or more, each once; found {list(classes)}",
            "correct the rows of the training split, or task.labels",
        )
    return tuple(classes)


def _classes_found(found: set[Any]) -> list[Any]:
    """The labels of the training split in order; whole numbers must be 0 to n-1."""
    if not all(type(v) is int for v in found):
        return sorted(found, key=label_text)
    stray = sorted(v for v in found if not 0 <= v < len(found))
    if stray and len(found) > 1:
        raise DataError(
            f"integer labels must be 0 to {len(found) - 1} without gaps; split 'train' also has "
            f"{', '.join(map(str, stray[:5]))}",
            "correct the rows, or list the classes: task.labels: [...]",
        )
    return sorted(found)
