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
    from sparsearch.results.store import Store

__all__ = [
    "DEFAULT_DB",
    "Db",
    "Json",
    "OfStudy",
    "Overrides",
    "Plot",
    "RayAddress",
    "StructureHash",
    "StudyFile",
    "StudyName",
    "next_command",
    "reading",
]

DEFAULT_DB = "sqlite:///sparsearch.db"
"""Of ``results.store``, which takes seconds to import."""

Db = Annotated[
    str,
    typer.Option(
        "--db",
        envvar="SPARSEARCH_DB",
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
RayAddress = Annotated[
    str | None,
    typer.Option(
        "--ray-address",
        metavar="HOST:PORT",
        help="A Ray cluster for workers.runner: ray; RAY_ADDRESS if not given, else Ray is started here.",
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


def _html(path: Path | None) -> Path | None:
    if path is not None and path.suffix.lower() not in (".html", ".htm"):
        raise typer.BadParameter(f"pictures are HTML files: write {path.stem or 'out'}.html")
    return path


Plot = Annotated[
    Path | None,
    typer.Option(
        "--plot",
        metavar="OUT.html",
        callback=_html,
        help="Also write a picture, as one HTML file.",
    ),
]


def next_command(db: str, *words: str) -> str:
    """A command to type next, on the same database, by the name under which this program can be found."""
    from sparsearch.results.urls import without_password

    program = "sparsearch"
    if shutil.which(program) is None and Path(sys.argv[0]).name == program:
        program = os.path.relpath(sys.argv[0])
    where = [] if db == DEFAULT_DB else ["--db", without_password(db)]
    return shlex.join([program, *words, *where])


def reading(db: str) -> Store:
    """The store, opened to read."""
    from sparsearch.results.store import Store

    return Store.open(db, create=False)
