"""What commands take: the options and arguments that several of them share."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from sparsearch.results.store.store import Store

__all__ = [
    "DEFAULT_DB",
    "Db",
    "Json",
    "OfStudy",
    "Overrides",
    "Plot",
    "StructureHash",
    "StudyFile",
    "StudyName",
    "as_html",
    "next_command",
    "password_note",
    "reading",
]

DEFAULT_DB = "sqlite:///sparsearch.db"
"""Of ``results.store``, which takes seconds to import."""

_DB_VARIABLE = "SPARSEARCH_DB"

Db = Annotated[
    str,
    typer.Option(
        "--db",
        envvar=_DB_VARIABLE,
        metavar="URL",
        help="postgresql://USER@HOST/NAME, or an SQLite file.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY.PATH=VALUE",
        help="A setting that wins over the file, like budgets.0=0.1%; may be repeated.",
    ),
]
StudyName = Annotated[
    str, typer.Argument(metavar="STUDY", help="Name of a study, or a unique prefix of it.")
]
OfStudy = Annotated[
    str | None, typer.Option("--study", help="Name of a study, or a unique prefix of it.")
]
StudyFile = Annotated[Path, typer.Argument(metavar="STUDY.yaml", help="A study file.")]
StructureHash = Annotated[
    str,
    typer.Argument(
        metavar="STRUCTURE",
        help="Hash of a structure, or a unique prefix of it.",
    ),
]


def as_html(path: Path | None) -> Path | None:
    """The file name of a picture or a report."""
    if path is not None and path.suffix.lower() not in (".html", ".htm"):
        raise typer.BadParameter(f"pictures are HTML files: write {path.stem or 'out'}.html")
    return path


Plot = Annotated[
    Path | None,
    typer.Option(
        "--plot",
        metavar="OUT.html",
        callback=as_html,
        help="Also write a picture, as one HTML file.",
    ),
]


def next_command(db: str, *words: str) -> str:
    """A command to type next, on the same database, by the name under which this program can be found.

    The environment may name the database, which keeps its password out of what is shown; see ``password_note`` too.
    """
    from sparsearch.results.store.connection.urls import to_paste

    program = "sparsearch"
    if shutil.which(program) is None and Path(sys.argv[0]).name == program:
        program = os.path.relpath(sys.argv[0])
    where = [] if db in (DEFAULT_DB, os.environ.get(_DB_VARIABLE)) else ["--db", to_paste(db)]
    return shlex.join([program, *words, *where])


def password_note(db: str) -> str:
    """What to do about a password that ``next_command`` leaves out; empty where it does not."""
    from sparsearch.results.store.connection.urls import has_password

    if db == os.environ.get(_DB_VARIABLE) or not has_password(db):
        return ""
    return "the password is left out: set PGPASSWORD, or write it to ~/.pgpass"


def reading(db: str) -> Store:
    """The store, opened to read."""
    from sparsearch.results.store.store import Store

    return Store.open(db, create=False)
