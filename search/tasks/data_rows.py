"""Data rows: the columns of a task's three splits, from local files or from the hub."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

from sparsearch.config.study import DataConfig
from sparsearch.errors import DataError
from sparsearch.search.tasks.data_files import (
    FORMATS,
    Rows,
    check_column_type,
    declared_classes,
    join_rows,
    read_file,
)
from sparsearch.search.tasks.images import images_below, in_row
from sparsearch.search.tasks.own_data import own_rows

__all__ = ["SPLITS", "image_files", "load_rows"]

SPLITS = ("train", "validation", "test")

_NAME_SPLITS = (
    "name the splits that exist: task.data.splits: {train: ..., validation: ..., test: ...}; "
    "a slice like train[90%:] works too"
)


def load_rows(
    config: DataConfig,
    folder: Path,
    columns: Mapping[str, Sequence[str]],
    images: Collection[str] = (),
) -> dict[str, Rows]:
    """Some columns of the three splits, each value as it is written.

    Args:
        config: What to load.
        folder: Where relative paths of local files start.
        columns: Those that the task needs of each split.
        images: Those of them that hold an ``ImageSource`` each: its paths start in the folder of the data file.

    Returns:
        The rows of ``train``, ``validation`` and ``test``.

    Raises:
        DataError: If a file, a split or a column is missing, a split is empty, or a file cannot be read.
    """
    if config.callable is not None:
        given = own_rows(config.callable)

        def take(wanted: tuple[str, ...], source: str) -> Rows:
            rows = given[source](wanted)
            _check_columns(source, rows.column_names, wanted, config)
            here = Path.cwd()  # a function of one's own may name files anywhere
            return images_below(rows, images, here, Path(here.anchor))

        return {
            split: _slice(
                config, split, list(given), functools.partial(take, tuple(columns[split]))
            )
            for split in SPLITS
        }
    if config.data_files is None:
        roots = _roots_of_images(config)
        hub = {split: _hub_split(config, split, columns[split]) for split in SPLITS}
        return {split: images_below(rows, images, *roots) for split, rows in hub.items()}
    _check_files(config, folder)

    @functools.cache
    def read(wanted: tuple[str, ...], source: str) -> Rows:
        return _file_split(config, folder, source, wanted, images)

    return {
        split: _slice(
            config, split, list(config.files), functools.partial(read, tuple(columns[split]))
        )
        for split in SPLITS
    }


def image_files(
    config: DataConfig, folder: Path, columns: Sequence[str]
) -> dict[str, tuple[Path, ...]]:
    """The files that the images of local data lie in: entry of ``data_files`` -> its files, each once.

    Raises:
        DataError: If a data file cannot be read, or an image is missing.
    """
    if not columns:
        return {}
    _check_files(config, folder)
    found: dict[str, dict[Path, None]] = {}
    for source in config.files:
        rows = _file_split(config, folder, source, columns, columns)
        files = found.setdefault(source, {})
        for column in columns:
            for row, image in enumerate(rows.columns[column]):
                with in_row(source, row, column):
                    path = image.path
                if path is not None:
                    files[path] = None
    return {source: tuple(files) for source, files in found.items()}


def _roots_of_images(config: DataConfig) -> tuple[Path, ...]:
    """Where ``datasets`` may say that images lie: in the folder that it reads, or among what it has downloaded."""
    import datasets

    return Path(config.path).absolute(), Path(datasets.config.HF_CACHE_HOME).expanduser()


def _check_files(config: DataConfig, folder: Path) -> None:
    if config.path not in FORMATS:
        raise DataError(
            f"task.data.path is {config.path!r}; with data_files it is one of {FORMATS}"
        )
    for split, files in config.files.items():
        paths = [(folder / file).resolve() for file in files]
        if twice := [
            file for file, path in zip(files, paths, strict=True) if paths.count(path) > 1
        ]:
            raise DataError(
                f"task.data.data_files: {split} lists one file twice: {', '.join(twice)}",
                "list each file once: each of its rows would count twice",
            )
    missing = [
        f"{split}: {file}"
        for split, files in config.files.items()
        for file in files
        if not (folder / file).is_file()
    ]
    if missing:
        raise DataError(
            f"task.data.data_files: no such file for {', '.join(missing)} (relative to {folder})",
            "correct the path, or --set task.data.data_files.train=PATH; a list holds several files, "
            "patterns are not expanded",
        )


def _file_split(
    config: DataConfig,
    folder: Path,
    source: str,
    columns: Sequence[str],
    images: Collection[str],
) -> Rows:
    """The rows of one entry of ``data_files``."""
    files = config.files[source]
    parts = [
        images_below(
            _read_file(config, folder, source, file, columns), images, (folder / file).parent
        )
        for file in files
    ]
    filled = [part for part in parts if len(part)]
    if not filled:
        raise DataError(f"split {source!r} is empty: {', '.join(files)} holds no rows")
    try:
        return join_rows(filled)
    except DataError as error:
        raise DataError(f"split {source!r} of {', '.join(files)}: {error.message}") from error


def _read_file(
    config: DataConfig, folder: Path, source: str, file: str, columns: Sequence[str]
) -> Rows:
    try:
        rows = read_file(config.path, folder / file, columns, config.delimiter)
    except DataError as error:
        lines = ", one object a line" if config.path == "json" else ""
        raise DataError(
            f"task.data: cannot load split {source!r} of {str(folder / file)!r}: {error.message}",
            error.hint or f"correct that file: it must be {config.path}{lines}",
        ) from error
    if rows.column_names:
        _check_columns(source, rows.column_names, columns, config)
    return rows


def _check_columns(
    split: str, found: Sequence[str], wanted: Sequence[str], config: DataConfig
) -> None:
    for column in wanted:
        if column not in found:
            others = [c for c in ";\t|," if c != config.delimiter and c in found[0]]
            hint = "correct the column's name in the section task"
            if config.path == "csv" and len(found) == 1 and others:
                hint = f"name what separates the fields: --set 'task.data.delimiter={json.dumps(others[0])}'"
            raise DataError(
                f"split {split!r} has no column {column!r}; it has: {', '.join(map(_shown, found))}",
                hint,
            )


def _shown(column: str) -> str:
    """A column's name; in quotes where blanks around it, or none in it, would not be seen."""
    return column if column == column.strip() != "" else repr(column)


def _slice(
    config: DataConfig, split: str, files: Sequence[str], read: Callable[[str], Rows]
) -> Rows:
    """The rows that a split names: an entry of ``data_files`` (or of what is given), a slice of one, or a sum."""
    import datasets

    wanted = config.splits.get(split, split)  # type: ignore[call-overload]
    source = wanted.partition("[")[0]
    needed = [source] if source in files and "+" not in wanted else list(files)
    lengths = {name: len(read(name)) for name in needed}
    spec = "+".join(files) if wanted == "all" else wanted
    try:
        slices = datasets.ReadInstruction.from_spec(spec).to_absolute(lengths)
    except (ValueError, AssertionError) as error:
        message = f"task.data: cannot load split {split!r}: {error}"
        raise DataError(message, _NAME_SPLITS) from error
    rows = join_rows([read(s.splitname).part(s.from_, s.to) for s in slices])
    if not len(rows):
        raise DataError(f"split {split!r} is empty: {wanted!r} selects no rows", _NAME_SPLITS)
    return rows


def _hub_split(config: DataConfig, split: str, columns: Sequence[str]) -> Rows:
    """A split as the ``datasets`` library loads it."""
    import datasets

    bars = datasets.utils.logging.is_progress_bar_enabled()
    datasets.utils.logging.disable_progress_bar()
    wanted = config.splits.get(split, split)  # type: ignore[call-overload]
    try:
        data = datasets.load_dataset(config.path, config.name, split=wanted)
    except Exception as error:  # noqa: BLE001 - datasets raises many unrelated types
        raise _hub_error(config, split, error) from error
    finally:
        if bars:
            datasets.utils.logging.enable_progress_bar()
    if len(data) == 0:
        raise DataError(f"split {split!r} is empty: {config.path} {wanted} holds no rows")
    _check_columns(split, data.column_names, columns, config)
    for column in columns:
        check_column_type(column, data.features[column])
        if isinstance(data.features[column], datasets.Image):
            data = data.cast_column(column, datasets.Image(decode=False))
    classes = {
        c: names for c in columns if (names := declared_classes(data.features[c])) is not None
    }
    return Rows({c: data[c][:] for c in columns}, tuple(data.column_names), classes)


def _hub_error(config: DataConfig, split: str, error: Exception) -> DataError:
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    text = " ".join(str(cause).split())[:300] or type(cause).__name__
    hint = (
        "load it once with the network (HF_HUB_OFFLINE unset), or give files: task.data.data_files"
    )
    return DataError(
        f"task.data: cannot load split {split!r} of {config.path!r}: {text}",
        _NAME_SPLITS if "split" in text else hint,
    )
