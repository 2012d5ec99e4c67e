"""Data files: rows of JSON, CSV and Parquet files, with every value as it is written."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
import re
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, TypeAlias

from sparsearch.errors import DataError

__all__ = [
    "FORMATS",
    "Rows",
    "check_column_type",
    "declared_classes",
    "is_packed",
    "join_rows",
    "read_file",
    "whole_numbers",
]

FORMATS = ("json", "csv", "parquet")

_Opener: TypeAlias = Callable[[], IO[bytes]]
_COMPRESSED: tuple[tuple[bytes, Callable[[Path], Any]], ...] = (
    (b"\x1f\x8b", gzip.open),
    (b"BZh", bz2.open),
    (b"\xfd7zXZ\x00", lzma.open),
)
"""First bytes of a compressed file, and what opens it."""
_ZIP = b"PK\x03\x04"
_UNREADABLE = (
    OSError, EOFError, RuntimeError, ValueError, zlib.error, lzma.LZMAError, zipfile.BadZipFile,
    tarfile.TarError,
)  # fmt: skip
_WHOLE_NUMBER = re.compile(r"0|-?[1-9][0-9]*")


@dataclass(frozen=True)
class Rows:
    """Some columns of a split.

    Attributes:
        columns: Name of a column -> its values, as many in each.
        column_names: All columns of the source, also those that were not asked for.
        class_names: Name of a column -> names of its classes, where the source declares them.
        typed: Whether the source tells numbers from text; CSV does not.
    """

    columns: Mapping[str, Sequence[Any]]
    column_names: tuple[str, ...]
    class_names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    typed: bool = True

    def __len__(self) -> int:
        return len(next(iter(self.columns.values()), ()))

    def part(self, start: int, stop: int) -> Rows:
        """The rows from ``start`` up to, not including, ``stop``."""
        columns = {name: values[start:stop] for name, values in self.columns.items()}
        return Rows(columns, self.column_names, self.class_names, self.typed)


def join_rows(parts: Sequence[Rows]) -> Rows:
    """The rows of all parts, one part after the other.

    Raises:
        DataError: If a part lacks a column, or declares other classes.
    """
    first = parts[0]
    if len(parts) == 1:
        return first
    if other := [part for part in parts if part.columns.keys() != first.columns.keys()]:
        raise DataError(
            f"its parts have different columns: {', '.join(first.column_names)}; "
            f"{', '.join(other[0].column_names)}"
        )
    if any(part.class_names != first.class_names for part in parts):
        raise DataError("its parts declare different classes, or the same in another order")
    columns = {
        name: [value for part in parts for value in part.columns[name]] for name in first.columns
    }
    names = tuple(dict.fromkeys(name for part in parts for name in part.column_names))
    return Rows(columns, names, first.class_names, first.typed)


def read_file(format: str, path: Path, columns: Sequence[str], delimiter: str) -> Rows:
    """Rows of a file, which may be compressed (gzip, bzip2, xz) or an archive (zip, tar).

    Args:
        format: ``json`` (an object a line, or lists of objects), ``csv`` (with a header) or ``parquet``.
        path: Taken literally.
        columns: Those to read; one that is missing is left out.
        delimiter: Between the fields of a CSV file.

    Returns:
        Rows whose JSON and Parquet values have the types of the file, and whose CSV values are text.

    Raises:
        DataError: If the file cannot be read; says where it is wrong.
    """
    readers: dict[str, Callable[[_Opener], Rows]] = {
        "json": lambda opener: _read_text(opener, lambda lines: _json_rows(lines, columns)),
        "csv": lambda opener: _read_text(
            opener, lambda lines: _csv_rows(lines, columns, delimiter)
        ),
        "parquet": lambda opener: _parquet_rows(opener, columns),
    }
    try:
        parts = [readers[format](opener) for opener in _openers(path)]
    except _UNREADABLE as error:
        raise DataError(str(error) or type(error).__name__) from error
    return join_rows([part for part in parts if part.column_names] or [Rows({}, ())])


def whole_numbers(columns: Iterable[Sequence[Any]]) -> bool:
    """Whether every text is a whole number as Python writes it: ``7`` is, ``07`` and ``7.0`` are not."""
    return all(_WHOLE_NUMBER.fullmatch(value) for column in columns for value in column)


def check_column_type(name: str, feature: Any) -> None:
    """Refuse a column of other media than images, as its source declares it; what of the rest will do a task says.

    Raises:
        DataError: If it is neither text, numbers, classes, lists, objects nor images.
    """
    import datasets

    known = datasets.Value | datasets.ClassLabel | datasets.List | datasets.Image | dict
    if not isinstance(feature, known):
        raise DataError(
            f"column {name!r} holds {feature}; it must hold text, numbers or classes",
            "write one text or number in each row",
        )


def declared_classes(feature: Any) -> tuple[str, ...] | None:
    """The classes that a source declares for a column of numbers, or of lists of them."""
    names = getattr(getattr(feature, "feature", feature), "names", None)
    return None if names is None else tuple(names)


def is_packed(path: Path) -> bool:
    """Whether a file is compressed or an archive: it may grow without end as it is read."""
    with path.open("rb") as stream:
        head = stream.read(8)
    return head.startswith((_ZIP, *(magic for magic, _ in _COMPRESSED))) or tarfile.is_tarfile(
        path
    )


def _openers(path: Path) -> Iterator[_Opener]:
    """What opens the file, or each file in an archive; names with a leading ``.`` or ``__`` are skipped."""
    with path.open("rb") as stream:
        head = stream.read(8)
    if head.startswith(_ZIP):
        with zipfile.ZipFile(path) as archive:
            for name in filter(_counts, archive.namelist()):
                yield lambda name=name: archive.open(name)  # type: ignore[misc]
    elif tarfile.is_tarfile(path):
        with tarfile.open(path) as bundle:
            for member in bundle:
                if member.isfile() and _counts(member.name):
                    yield lambda member=member: bundle.extractfile(member)  # type: ignore[misc]
    else:
        compressed = (opener for magic, opener in _COMPRESSED if head.startswith(magic))
        opener = next(compressed, lambda path: path.open("rb"))
        yield lambda: opener(path)


def _counts(name: str) -> bool:
    parts = Path(name).parts
    return not name.endswith("/") and not any(p.startswith((".", "__")) for p in parts)


def _read_text(opener: _Opener, read: Callable[[io.TextIOWrapper], Rows]) -> Rows:
    """What ``read`` makes of the lines of a UTF-8 file, with or without a byte order mark."""
    try:
        with opener() as stream:
            return read(io.TextIOWrapper(stream, "utf-8-sig", newline=""))
    except UnicodeDecodeError as error:
        raise _not_utf8(opener) from error


def _not_utf8(opener: _Opener) -> DataError:
    """Names the first byte that is not UTF-8."""
    with opener() as stream:
        for number, line in enumerate(stream, start=1):
            try:
                line.decode()
            except UnicodeDecodeError as error:
                return DataError(
                    f"line {number}, byte {error.start + 1} is {line[error.start]:#04x}, which is not UTF-8",
                    "save the file as UTF-8",
                )
    raise AssertionError("the file has changed while it was read")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise DataError(f"an object has the key {twice!r} twice")
    return found


def _json_rows(lines: io.TextIOWrapper, columns: Sequence[str]) -> Rows:
    """An object a line; else lists and objects one after the other, on any number of lines."""
    decoder = json.JSONDecoder(object_pairs_hook=_object)
    values: dict[str, list[Any]] = {name: [] for name in columns}
    names: dict[str, None] = {}
    for where, row in _json_objects(lines, decoder):
        if not isinstance(row, dict):
            raise DataError(f"{where} holds {row!r:.40} where an object belongs")
        names.update(dict.fromkeys(row))
        for name, column in values.items():
            value = row.get(name)
            if isinstance(value, str) and not value.isascii():
                _check_characters(value, f"{where}: {name!r}")
            column.append(value)
    if not names and any(values.values()):
        raise DataError("its objects are empty", "write each row's text and label into its object")
    return Rows({name: values[name] for name in columns if name in names}, tuple(names))


def _check_characters(text: str, where: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"{where} holds half a character: {text!r:.60}",
            "write the character itself, or both of its \\u escapes",
        ) from error


def _json_objects(lines: io.TextIOWrapper, decoder: json.JSONDecoder) -> Iterator[tuple[str, Any]]:
    by_line = None
    for number, line in enumerate(lines, start=1):
        text = line.strip()
        if not text:
            continue
        if by_line is None:
            by_line = _is_object(text, decoder)
        if not by_line:
            yield from _json_values(line + lines.read(), number, decoder)
            return
        try:
            yield f"line {number}", decoder.decode(text)
        except json.JSONDecodeError as error:
            raise DataError(f"line {number}, column {error.colno}: {error.msg}") from error
        except DataError as error:
            raise DataError(f"line {number}: {error.message}") from error


def _is_object(text: str, decoder: json.JSONDecoder) -> bool:
    """Whether a line is an object of its own, and so is each one that follows."""
    try:
        return isinstance(decoder.decode(text), dict)
    except json.JSONDecodeError:
        return False
    except DataError:
        return True


def _json_values(
    text: str, first_line: int, decoder: json.JSONDecoder
) -> Iterator[tuple[str, Any]]:
    """Objects that stand alone or in lists."""
    end, count = 0, 0
    while rest := re.compile(r"\S").search(text, end):
        try:
            value, end = decoder.raw_decode(text, rest.start())
        except json.JSONDecodeError as error:
            line = first_line + error.lineno - 1
            raise DataError(f"line {line}, column {error.colno}: {error.msg}") from error
        for row in value if isinstance(value, list) else [value]:
            yield f"row {count}", row
            count += 1


def _csv_rows(lines: io.TextIOWrapper, columns: Sequence[str], delimiter: str) -> Rows:
    """Rows under a header. Each field is text, whether it is quoted or not; empty lines are skipped."""
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    longest = csv.field_size_limit(sys.maxsize)
    try:
        filled = (row for row in reader if row)
        header = next(filled, [])
        if twice := [name for name in columns if header.count(name) > 1]:
            raise DataError(f"the header names {twice[0]!r} {header.count(twice[0])} times")
        places = {name: header.index(name) for name in columns if name in header}
        values: dict[str, list[str]] = {name: [] for name in places}
        for row in filled:
            if len(row) != len(header):
                raise DataError(
                    f"line {reader.line_num} ends a row of {len(row)} fields, the header has {len(header)}",
                    _fields_hint(row),
                )
            for name, place in places.items():
                values[name].append(row[place])
    except csv.Error as error:
        hint = 'write a double quote inside a quoted field as ""'
        raise DataError(f"line {reader.line_num}: {error}", hint) from error
    finally:
        csv.field_size_limit(longest)
    return Rows(values, tuple(header), typed=False)


def _parquet_rows(opener: _Opener, columns: Sequence[str]) -> Rows:
    import datasets
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with opener() as stream, pq.ParquetFile(stream) as file:
            names = tuple(file.schema_arrow.names)
            there = [name for name in columns if name in names]
            table = file.read(columns=there)
    except (pa.ArrowException, KeyError) as error:
        raise DataError(str(error)) from error
    features = datasets.Features.from_arrow_schema(table.schema)
    for name in there:
        check_column_type(name, features[name])
    return Rows(
        {name: table[name].to_pylist() for name in there},
        names,
        {n: found for n in there if (found := declared_classes(features[n])) is not None},
    )


def _fields_hint(row: Sequence[str]) -> str:
    """What to do about a row of too many or too few fields."""
    if not any(field.strip() for field in row):
        return "remove that line: it holds blanks alone"
    if any(field[:1].isspace() and field.lstrip().startswith('"') for field in row):
        return "write no blank between a delimiter and a double quote: the quote would be a part of the field"
    return "put fields that contain the delimiter into double quotes"
