"""Where the rows of a task are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from sparsearch.config.fields import Section
from sparsearch.config.tasks.imports import is_import_path

__all__ = ["DataConfig"]


def _data_files(value: Any) -> Any:
    """A file or a list of files for each split: the message names no branch of the type."""
    for split, files in value.items() if isinstance(value, Mapping) else ():
        listed = files if isinstance(files, list) else [files]
        if not listed or not all(isinstance(file, str) and file for file in listed):
            raise ValueError(f"{split} must be a file or a list of files, not {files!r}")
    return value


def _delimiter(value: Any) -> Any:
    if not isinstance(value, str) or len(value) != 1 or value in '\r\n"':
        raise ValueError(
            f'{value!r} is no delimiter: write one character in quotes, as ";", or "\\t" for a tab'
        )
    return value


class DataConfig(Section):
    """Where the rows are, and which of them play which part.

    Attributes:
        callable: ``package.module:function`` that gives the rows, in the place of a path.
        path: ``json``, ``csv`` or ``parquet`` with ``data_files``; else what ``datasets.load_dataset`` takes.
        name: Configuration of a data set on the hub.
        data_files: Name of a split -> a file, or a list of files that are read one after the other.
        splits: What plays a part, where its name is another: ``validation: train[90%:]``.
        delimiter: Between the fields of a CSV file.
    """

    path: str = ""
    callable: str | None = None
    name: str | None = None
    data_files: Annotated[dict[str, str | list[str]], BeforeValidator(_data_files)] | None = None
    splits: dict[Literal["train", "validation", "test"], str] = Field(default_factory=dict)
    delimiter: Annotated[str, BeforeValidator(_delimiter)] = ","

    @model_validator(mode="after")
    def _one_source(self) -> DataConfig:
        if bool(self.path) == (self.callable is not None):
            raise ValueError("give a path, or a callable, not both")
        if self.callable is not None and not is_import_path(self.callable):
            raise ValueError(f"callable {self.callable!r}: write package.module:function")
        if self.callable is not None and (self.data_files is not None or self.name is not None):
            raise ValueError("data_files and name go with a path, not with a callable")
        return self

    @model_validator(mode="after")
    def _delimiter_fits(self) -> DataConfig:
        if self.delimiter != "," and (self.path != "csv" or self.data_files is None):
            raise ValueError("delimiter is for path csv with data_files")
        return self

    @property
    def files(self) -> dict[str, list[str]]:
        """The files of each entry of ``data_files``, one or several."""
        entries = (self.data_files or {}).items()
        return {split: files if isinstance(files, list) else [files] for split, files in entries}
