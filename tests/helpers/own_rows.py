"""Rows as a user's functions would give them, to be named by import path."""

from __future__ import annotations

from typing import Any

import datasets

MOODS = [("the film was good", "yes"), ("the book was bad", "no")] * 4
COLUMNS = {"text": [text for text, _ in MOODS], "label": [label for _, label in MOODS]}


def plain() -> dict[str, Any]:
    """A dictionary of columns for each split."""
    return dict.fromkeys(("train", "validation", "test"), COLUMNS)


def again() -> dict[str, Any]:
    """The same from another function."""
    return plain()


def other() -> dict[str, Any]:
    """Other labels."""
    return plain() | {"train": COLUMNS | {"label": COLUMNS["label"][::-1]}}


def one() -> datasets.Dataset:
    """A single data set with declared classes."""
    data = datasets.Dataset.from_dict(COLUMNS)
    return data.cast_column("label", datasets.ClassLabel(names=["yes", "no"]))


def several() -> datasets.DatasetDict:
    """A data set for each split."""
    return datasets.DatasetDict({name: one() for name in ("train", "validation", "test")})


def broken() -> None:
    """Fails."""
    raise OSError("the disk is away")


def nothing() -> list[int]:
    """No data."""
    return [1]


def ragged() -> dict[str, Any]:
    """Columns of unequal length."""
    return {"train": {"text": ["a"], "label": []}}
