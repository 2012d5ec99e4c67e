"""What reaches the screen: results on stdout, the rest on stderr, errors without a traceback."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from typing import Any, ParamSpec, TextIO

import typer
from rich.console import Console
from rich.text import Text

from sparsearch.documents import plain
from sparsearch.errors import SparsearchError

__all__ = ["errors", "guarded", "output", "print_json", "show_error", "stdout_is_for_results"]

DEBUG = "SPARSEARCH_DEBUG"
"""Environment variable that asks for tracebacks."""

INTERRUPTED = 130

_WIDTH = 100
_SCREEN_LINES = 40

P = ParamSpec("P")


def output() -> Console:
    """Where tables go."""
    return _console(sys.stdout, stderr=False)


def errors() -> Console:
    """Where progress and messages go."""
    return _console(sys.stderr, stderr=True)


def _console(stream: TextIO, stderr: bool) -> Console:
    # A pipe has no width; rich would assume 80 columns and squeeze the tables.
    piped = not stream.isatty() and "COLUMNS" not in os.environ
    width = _WIDTH if piped else None
    return Console(stderr=stderr, width=width, highlight=False, markup=False)


@contextlib.contextmanager
def stdout_is_for_results() -> Iterator[None]:
    """Send what libraries print to stderr while work is done."""
    with contextlib.redirect_stdout(sys.stderr):
        yield


def print_json(document: Any) -> None:
    """Print one JSON document of plain values, see ``documents.plain``."""
    typer.echo(json.dumps(plain(document), indent=2, ensure_ascii=False, allow_nan=False))


def show_error(message: str, hint: str = "") -> None:
    """One screen on stderr: what happened, and what to do."""
    console = errors()
    lines = message.splitlines() or [""]
    if len(lines) > _SCREEN_LINES:
        lines = [*lines[:_SCREEN_LINES], f"  ... and {len(lines) - _SCREEN_LINES} more lines"]
    console.print(Text.assemble(("error: ", "bold red"), "\n".join(lines)), soft_wrap=True)
    if hint:
        console.print(Text.assemble(("hint: ", "bold"), hint), style="dim", soft_wrap=True)


def guarded(command: Callable[P, None]) -> Callable[P, None]:
    """A command whose errors end in a message and an exit code, never in a traceback."""

    @functools.wraps(command)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            command(*args, **kwargs)
        except (typer.Exit, typer.Abort, typer.BadParameter, BrokenPipeError):
            raise
        except KeyboardInterrupt:
            show_error("interrupted")
            raise typer.Exit(INTERRUPTED) from None
        except Exception as error:  # noqa: BLE001 - a user is never shown a traceback
            if os.environ.get(DEBUG):
                traceback.print_exc()
            show_error(*_described(error))
            code = error.exit_code if isinstance(error, SparsearchError) else 1
            raise typer.Exit(code) from None

    return wrapper


def _described(error: Exception) -> tuple[str, str]:
    """Message and hint of an error."""
    if isinstance(error, SparsearchError):
        return error.message, error.hint
    text = " ".join(str(error).split())
    name = type(error).__name__
    return f"unexpected {name}: {text}" if text else f"unexpected {name}", (
        f"set {DEBUG}=1 to see the traceback, and please report it"
    )
