"""Writing a folder: whole or not at all, and every way in which a disk refuses in the same words."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from sparsearch.errors import ExportError, SparsearchError

__all__ = ["ExportReport", "check_target", "first_line", "new_folder", "write_problem"]

_OTHER = "choose another --out"
_RUST = re.compile(r"\(os error (\d+)\)")
"""How safetensors and tokenizers tell what the system said; each raises a type of its own."""


@dataclass(frozen=True)
class ExportReport:
    """What was written.

    Attributes:
        path: The folder.
        files: Names in it.
        notes: What a user of the files should know.
        max_difference: Of the logits, before and after the round trip.
    """

    path: Path
    files: tuple[str, ...]
    notes: tuple[str, ...]
    max_difference: float


def check_target(out: Path) -> None:
    """Refuse a target that could not be written, before any work.

    Raises:
        ExportError: If it exists and is not an empty folder, is a symbolic link to nothing, or cannot be written to.
    """
    try:
        if out.is_symlink() and not out.exists():
            raise ExportError(
                f"{out} is a symbolic link to {os.readlink(out)}, where nothing is",
                "make that folder, or choose another --out",
            )
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise ExportError(f"{out} exists and is not an empty folder", _OTHER)
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _cannot_write(out, error.strerror or str(error)) from error
    if not os.access(out if out.exists() else out.parent, os.W_OK):
        which = "it" if out.exists() else "its folder"
        raise ExportError(f"cannot write {out}: {which} is read-only", _OTHER)


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A hidden folder, whose content is that of the target once the context ends without an error.

    An empty folder that exists, or to which a link leads, is filled; else the target is made.

    Args:
        out: The target.

    Raises:
        ExportError: If it cannot be written to. Nothing is left behind.
    """
    check_target(out)
    exists = out.exists()
    partial: Path | None = None
    try:
        place = (out if exists else out.parent).resolve()
        partial = Path(tempfile.mkdtemp(prefix=".export-", dir=place))
        yield partial
        if exists:
            for file in partial.iterdir():
                file.replace(out / file.name)
        else:
            partial.chmod(0o755)
            partial.replace(out)
    except SparsearchError:
        raise
    except Exception as error:
        if problem := write_problem(error):
            raise _cannot_write(out, problem) from error
        raise
    finally:
        if partial is not None:
            shutil.rmtree(partial, ignore_errors=True)


def write_problem(error: BaseException) -> str:
    """What the system said when a file could not be written; empty for any other error."""
    if isinstance(error, OSError) and error.errno is not None:
        return os.strerror(error.errno)
    if number := _RUST.search(str(error)):
        return os.strerror(int(number[1]))
    return write_problem(error.__cause__) if error.__cause__ is not None else ""


def first_line(error: Exception) -> str:
    """What went wrong, in one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def _cannot_write(out: Path, problem: str) -> ExportError:
    return ExportError(f"cannot write {out}: {problem}", _OTHER)
