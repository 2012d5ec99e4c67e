"""Tasks: a data set's three splits, tokenised once, cut into length-bucketed batches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sparsearch.config import DataConfig, TaskConfig
from sparsearch.errors import DataError

__all__ = ["SPLITS", "Split", "Task", "batches", "load_rows", "load_task", "subset"]

SPLITS = ("train", "validation", "test")
_POOL = 16
_LOCAL = ("json", "csv", "parquet")


@dataclass(frozen=True)
class Split:
    """Rows as padded tensors.

    Attributes:
        inputs: Name of a model input -> (rows, max length) integers.
        lengths: Tokens of each row.
        labels: (rows,) class indices, or float targets.
    """

    inputs: Mapping[str, Tensor]
    lengths: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return int(self.labels.shape[0])


@dataclass(frozen=True)
class Task:
    """A task ready to train on.

    Attributes:
        name: For queries.
        type: ``classification`` or ``regression``.
        metric: Name of the metric, higher is better.
        classes: Class names in the order of their indices; empty for regression.
        max_length: Tokens per row at most.
        train: Training split; likewise ``validation`` and ``test``.
    """

    name: str
    type: str
    metric: str
    classes: tuple[str, ...]
    max_length: int
    train: Split
    validation: Split
    test: Split

    @property
    def num_labels(self) -> int:
        """Outputs of the head."""
        return len(self.classes) or 1


def subset(split: Split, rows: Tensor) -> Split:
    """The given rows of a split."""
    return Split(
        {k: v[rows] for k, v in split.inputs.items()}, split.lengths[rows], split.labels[rows]
    )


def batches(
    split: Split, batch_size: int, device: torch.device, generator: torch.Generator | None = None
) -> Iterator[dict[str, Tensor]]:
    """One epoch of batches, each padded to its own longest row.

    With a generator rows are shuffled, then sorted by length inside pools of 16 batches, and
    the batches shuffled;
    without one, rows come sorted by length. A batch holds the model's inputs and ``labels``; ``rows``
    are its row numbers.
    """
    count = len(split)
    if generator is None:
        order = torch.argsort(split.lengths, stable=True)
        chunks = list(order.split(batch_size))  # type: ignore[no-untyped-call]
    else:
        shuffled = torch.randperm(count, generator=generator)
        chunks = []
        for pool in shuffled.split(batch_size * _POOL):  # type: ignore[no-untyped-call]
            chunks += pool[torch.argsort(split.lengths[pool], stable=True)].split(batch_size)
        chunks = [chunks[i] for i in torch.randperm(len(chunks), generator=generator).tolist()]
    for rows in chunks:
        longest = int(split.lengths[rows].max())
        batch = {
            k: v[rows, :longest].to(device, non_blocking=True) for k, v in split.inputs.items()
        }
        yield batch | {"labels": split.labels[rows].to(device, non_blocking=True), "rows": rows}


def load_rows(config: DataConfig, folder: Path) -> dict[str, Any]:
    """The three splits as ``datasets.Dataset``.

    Args:
        config: What to load.
        folder: Where relative paths of local files start.

    Raises:
        DataError: If a file or a split is missing or unreadable.
    """
    import datasets

    files = None
    if config.data_files is not None:
        if config.path not in _LOCAL:
            raise DataError(
                f"task.data.path is {config.path!r}; with data_files it is one of {_LOCAL}"
            )
        files = {
            split: str((folder / file).resolve()) for split, file in config.data_files.items()
        }
        missing = [
            f"{s}: {config.data_files[s]}" for s, f in files.items() if not Path(f).is_file()
        ]
        if missing:
            raise DataError(
                f"task.data.data_files: no such file for {', '.join(missing)} (relative to {folder})",
                "correct the path, or --set task.data.data_files.train=PATH",
            )
    rows = {}
    bars = datasets.utils.logging.is_progress_bar_enabled()
    datasets.utils.logging.disable_progress_bar()
    try:
        for split in SPLITS:
            wanted = config.splits.get(split, split)  # type: ignore[call-overload]
            source = wanted.partition("[")[0]
            only = {source: files[source]} if files is not None and source in files else files
            try:
                rows[split] = datasets.load_dataset(
                    config.path, config.name, data_files=only, split=wanted
                )
            except Exception as error:  # noqa: BLE001 - datasets raises many unrelated types
                raise _load_error(config, folder, split, error) from error
    finally:
        if bars:
            datasets.utils.logging.enable_progress_bar()
    return rows


def _load_error(config: DataConfig, folder: Path, split: str, error: Exception) -> DataError:
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    text = " ".join(str(cause).split())[:300] or type(cause).__name__
    file = (config.data_files or {}).get(split)
    if file is not None and not (folder / file).read_bytes().strip():
        return DataError(f"split {split!r} is empty: {file} holds no rows")
    return DataError(
        f"task.data: cannot load split {split!r} of {config.path!r}: {text}",
        "name the splits that exist: task.data.splits: {train: ..., validation: ..., test: ...}; "
        "a slice like train[90%:] works too",
    )


def load_task(config: TaskConfig, folder: Path, tokenizer: Any) -> Task:
    """Load, check and tokenise a task.

    Args:
        config: The task.
        folder: Where relative paths of local files start.
        tokenizer: The backbone's tokenizer.

    Raises:
        DataError: If a split is empty, a column is missing, or a label is outside the classes.
    """
    rows = load_rows(config.data, folder)
    for split, data in rows.items():
        if len(data) == 0:
            raise DataError(f"split {split!r} of task {config.title!r} is empty")
        for column in (*config.text, config.label):
            if column not in data.column_names:
                raise DataError(
                    f"split {split!r} has no column {column!r}; it has: {', '.join(data.column_names)}",
                    "correct task.text or task.label",
                )
    if config.max_train_rows is not None:
        rows["train"] = rows["train"].select(range(min(config.max_train_rows, len(rows["train"]))))
    classes: tuple[Any, ...] = ()
    if config.type == "classification":
        classes = _classes(config, rows["train"])
    limit = min(config.max_length, _model_limit(tokenizer))
    splits = {s: _tokenise(config, s, d, tokenizer, limit, classes) for s, d in rows.items()}
    return Task(
        config.title, config.type, config.metric, tuple(map(str, classes)), limit, **splits
    )


def _model_limit(tokenizer: Any) -> int:
    """Longest input of the model; tokenizers without one say a huge number."""
    return int(min(tokenizer.model_max_length, 1 << 20))


def _classes(config: TaskConfig, train: Any) -> tuple[Any, ...]:
    """The classes: as configured, as the data set declares, or those found in the training split."""
    if config.labels is not None:
        return tuple(config.labels)
    feature = train.features[config.label]
    if hasattr(feature, "names"):
        return tuple(range(len(feature.names)))
    found = set(train.unique(config.label))
    if None in found:
        raise DataError(f"split 'train' has rows without a {config.label!r}")
    if all(isinstance(v, int) for v in found):
        ordered = sorted(found)
        expected = list(range(len(ordered)))
        if ordered != expected:
            stray = [v for v in ordered if not 0 <= v < len(ordered)]
            raise DataError(
                f"integer labels must be 0 to {len(ordered) - 1} without gaps; split 'train' also has "
                f"{', '.join(map(str, stray[:5]))}",
                "correct the rows, or list the classes: task.labels: [...]",
            )
        return tuple(ordered)
    return tuple(sorted(found, key=str))


def _labels(
    config: TaskConfig, split: str, values: Sequence[Any], classes: Sequence[Any]
) -> Tensor:
    if config.type == "regression":
        try:
            targets = torch.tensor([float(v) for v in values])
        except (TypeError, ValueError) as error:
            raise DataError(
                f"split {split!r}: {config.label!r} must be numbers: {error}"
            ) from error
        if not bool(torch.isfinite(targets).all()):
            raise DataError(f"split {split!r}: {config.label!r} has values that are not finite")
        return targets
    index = {value: i for i, value in enumerate(classes)}
    outside = [(row, v) for row, v in enumerate(values) if v not in index]
    if outside:
        row, value = outside[0]
        shown = ", ".join(map(repr, classes[:10])) + (", ..." if len(classes) > 10 else "")
        raise DataError(
            f"split {split!r}, row {row}: label {value!r} is outside the classes {shown} "
            f"({len(outside)} such rows)",
            "correct the rows, list the classes (task.labels: [...]), or choose a labelled split (task.data.splits)",
        )
    return torch.tensor([index[v] for v in values])


def _tokenise(
    config: TaskConfig, split: str, data: Any, tokenizer: Any, limit: int, classes: Sequence[Any]
) -> Split:
    columns = [data[column][:] for column in config.text]
    for name, column in zip(config.text, columns, strict=True):
        for row, text in enumerate(column):
            if not isinstance(text, str):
                raise DataError(
                    f"split {split!r}, row {row}: column {name!r} holds no text: {text!r}"
                )
    encoded = tokenizer(*columns, truncation=True, max_length=limit, padding="longest")
    inputs = {k: torch.tensor(v) for k, v in encoded.items()}
    lengths = inputs["attention_mask"].sum(dim=1)
    return Split(inputs, lengths, _labels(config, split, data[config.label][:], classes))
