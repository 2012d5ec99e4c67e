"""Rows that a function of the user's gives."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any

from sparsearch.config.tasks.imports import find_function
from sparsearch.errors import DataError
from sparsearch.search.tasks.data_files import Rows, check_column_type, declared_classes

__all__ = ["own_digests", "own_rows"]

_SHAPE = (
    "return a datasets.DatasetDict, a datasets.Dataset, or a dictionary of splits, each a dictionary of columns: "
    '{"train": {"text": [...], "label": [...]}, ...}'
)


def own_rows(path: str) -> dict[str, Callable[[tuple[str, ...]], Rows]]:
    """What a function gives, each split as a reader of some of its columns; a single data set is ``train``.

    Args:
        path: ``package.module:function`` of a function without arguments.

    Raises:
        ConfigError: If the function cannot be imported.
        DataError: If it fails, or gives anything but data.
    """
    import datasets

    function = find_function(path)
    try:
        given = function()
    except Exception as error:  # a function raises what its author chose
        raise DataError(
            f"task.data.callable {path} fails: {type(error).__name__}: {error}",
            "it is called without arguments",
        ) from error
    splits = {"train": given} if isinstance(given, datasets.Dataset) else given
    if not isinstance(splits, Mapping) or not splits:
        raise DataError(f"task.data.callable {path} gives no data: {given!r:.60}", _SHAPE)
    return {str(name): _reader(path, str(name), split) for name, split in splits.items()}


def own_digests(path: str) -> dict[str, str]:
    """The SHA-256 of the content of each split that a function gives, as of local files."""
    found = {}
    for name, read in own_rows(path).items():
        rows = read(read(()).column_names)
        text = json.dumps(
            {c: list(v) for c, v in rows.columns.items()}, sort_keys=True, default=str
        )
        found[name] = hashlib.sha256(text.encode()).hexdigest()
    return found


def _reader(path: str, name: str, split: Any) -> Callable[[tuple[str, ...]], Rows]:
    import datasets

    if isinstance(split, datasets.Dataset):
        return lambda columns: _of_dataset(split, columns)
    plain = isinstance(split, Mapping) and all(isinstance(v, list) for v in split.values())
    if not plain or len(set(map(len, split.values()))) != 1:
        raise DataError(
            f"task.data.callable {path}: split {name!r} holds no columns of equal length: {split!r:.60}",
            _SHAPE,
        )
    names = tuple(map(str, split))
    return lambda columns: Rows({c: split[c] for c in columns if c in names}, names)


def _of_dataset(data: Any, columns: tuple[str, ...]) -> Rows:
    there = [name for name in columns if name in data.column_names]
    for name in there:
        check_column_type(name, data.features[name])
    declared = {name: declared_classes(data.features[name]) for name in there}
    classes = {name: names for name, names in declared.items() if names is not None}
    return Rows({name: data[name][:] for name in there}, tuple(data.column_names), classes)
