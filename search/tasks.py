"""Tasks: a data set's three splits, tokenised once, cut into length-bucketed batches."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sparsearch.config import DataConfig, TaskConfig
from sparsearch.errors import DataError
from sparsearch.spaces.backbone import longest_input

__all__ = [
    "SPLITS",
    "Split",
    "StoredInputs",
    "Task",
    "batches",
    "endless",
    "load_rows",
    "load_task",
    "subset",
]

SPLITS = ("train", "validation", "test")
_POOL = 16
_LOCAL = ("json", "csv", "parquet")


@dataclass(frozen=True)
class StoredInputs:
    """Inputs of some layer for every row, without padding.

    Attributes:
        tokens: (all tokens, width).
        starts: (rows,) where each row begins.
    """

    tokens: Tensor
    starts: Tensor

    def batch(self, rows: Tensor, longest: int) -> Tensor:
        """(rows, longest, width); what stands at padding is of other rows, and masked as padding is."""
        places = self.starts[rows][:, None] + torch.arange(longest)[None, :]
        return self.tokens[places.clamp_(max=self.tokens.shape[0] - 1).to(self.tokens.device)]


@dataclass(frozen=True)
class Split:
    """Rows as padded tensors.

    Attributes:
        inputs: Name of a model input -> (rows, max length) integers.
        lengths: Tokens of each row.
        labels: (rows,) class indices, or float targets.
        stored: Inputs of a layer, where the layers below are skipped.
    """

    inputs: Mapping[str, Tensor]
    lengths: Tensor
    labels: Tensor
    stored: StoredInputs | None = None

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

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of every token and label, and of what they mean: equal for equal data."""
        digest = hashlib.sha256(f"{self.type} {self.metric} {self.classes}".encode())
        for split in (self.train, self.validation, self.test):
            for tensor in (*split.inputs.values(), split.labels):
                digest.update(str(tuple(tensor.shape)).encode())
                digest.update(tensor.contiguous().numpy().tobytes())
        return digest.hexdigest()

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

    With a generator rows are shuffled, then sorted by length inside pools of 16 batches, and the
    batches shuffled; without one, rows come sorted by length. A batch holds the model's inputs
    and ``labels``; ``rows`` are its row numbers.
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
        if split.stored is not None:
            batch["hidden"] = split.stored.batch(rows, longest)
        yield batch | {"labels": split.labels[rows].to(device, non_blocking=True), "rows": rows}


def endless(
    split: Split, batch_size: int, device: torch.device, generator: torch.Generator
) -> Iterator[dict[str, Tensor]]:
    """Epoch after epoch of batches."""
    while True:
        yield from batches(split, batch_size, device, generator)


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
    what = repr(config.path if file is None else str(folder / file))
    if "split" in text:
        hint = (
            "name the splits that exist: task.data.splits: {train: ..., validation: ..., test: ...}; "
            "a slice like train[90%:] works too"
        )
    elif file is not None:
        hint = f"correct that file: it must be {config.path}" + (
            ", one object a line" if config.path == "json" else ""
        )
    else:
        hint = "load it once with the network (HF_HUB_OFFLINE unset), or give files: task.data.data_files"
    return DataError(f"task.data: cannot load split {split!r} of {what}: {text}", hint)


def load_task(
    config: TaskConfig, folder: Path, tokenizer: Any, most_tokens: int | None = None
) -> Task:
    """Load, check and tokenise a task.

    Args:
        config: The task.
        folder: Where relative paths of local files start.
        tokenizer: The backbone's tokenizer.
        most_tokens: Longest input that the backbone takes, None without limit.

    Raises:
        DataError: If a split is empty, a column is missing, a label is outside the classes, or the training split
            is too small to be halved or has rows of one class only.
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
    classes: tuple[Any, ...] = ()
    if config.type == "classification":
        classes = _classes(config, rows["train"])
    if config.max_train_rows is not None:
        rows["train"] = rows["train"].select(range(min(config.max_train_rows, len(rows["train"]))))
    limit = longest_input(config.max_length, tokenizer, most_tokens)
    splits = {s: _tokenise(config, s, d, tokenizer, limit, classes) for s, d in rows.items()}
    _check_enough(config, splits["train"])
    names = getattr(rows["train"].features[config.label], "names", None)
    if config.labels is None and names is not None:
        classes = tuple(names)
    return Task(
        config.title, config.type, config.metric, tuple(map(str, classes)), limit, **splits
    )


def _check_enough(config: TaskConfig, train: Split) -> None:
    """What is left to train on: a search halves it, and one class teaches nothing."""
    if len(train) < 2:
        problem = "one row, which a search cannot halve"
    elif config.type == "classification" and len(set(train.labels.tolist())) < 2:
        problem = f"{len(train)} rows, all of one class"
    else:
        return
    cut = config.max_train_rows == len(train)
    raise DataError(
        f"split 'train' of task {config.title!r} is left with {problem}",
        "raise task.max_train_rows, or shuffle the rows of the file: the first ones are taken"
        if cut
        else "add rows to the training split, or name another one: task.data.splits.train",
    )


def _classes(config: TaskConfig, train: Any) -> tuple[Any, ...]:
    """The classes: as configured, as the data set declares, or those of the whole training split."""
    feature = train.features[config.label]
    if config.labels is not None:
        found = list(config.labels)
    elif hasattr(feature, "names"):
        found = list(range(len(feature.names)))
    else:
        found = _classes_found(config, train)
    if len(found) < 2 or len(set(found)) != len(found):
        raise DataError(
            f"a classification needs two classes or more, each once; found {found}",
            "correct the rows of the training split, or task.labels",
        )
    return tuple(found)


def _classes_found(config: TaskConfig, train: Any) -> list[Any]:
    found = set(train.unique(config.label))
    if None in found:
        raise DataError(f"split 'train' has rows without a {config.label!r}")
    if not all(isinstance(v, int) for v in found):
        return sorted(found, key=str)
    stray = sorted(v for v in found if not 0 <= v < len(found))
    if stray:
        raise DataError(
            f"integer labels must be 0 to {len(found) - 1} without gaps; split 'train' also has "
            f"{', '.join(map(str, stray[:5]))}",
            "correct the rows, or list the classes: task.labels: [...]",
        )
    return sorted(found)


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
    _check_tokens(split, tokenizer, inputs["input_ids"], lengths)
    return Split(inputs, lengths, _labels(config, split, data[config.label][:], classes))


def _check_tokens(split: str, tokenizer: Any, ids: Tensor, lengths: Tensor) -> None:
    """Rows that a classifier cannot pool: without a token, or with the text of a special token in them."""
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
