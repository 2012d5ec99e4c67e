"""What commands take: the options and arguments that several of them share."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sparsearch.config.tasks.types import TASK_TYPES

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from sparsearch.results.source import StudySource

__all__ = [
    "DEFAULT_DB",
    "DEFAULT_TYPE",
    "SERVER_VARIABLE",
    "Database",
    "Db",
    "Json",
    "OfStudy",
    "Overrides",
    "Plot",
    "StructureHash",
    "StudyFile",
    "StudyName",
    "TaskType",
    "as_html",
    "is_server",
    "next_command",
    "password_note",
    "reading",
]

DEFAULT_DB = "sqlite:///sparsearch.db"
"""Of ``results.store``, which takes seconds to import."""

_DB_VARIABLE = "SPARSEARCH_DB"
SERVER_VARIABLE = "SPARSEARCH_SERVER"


def _known_type(name: str) -> str:
    """A task type.

    Raises:
        BadParameter: If there is none of that name.
    """
    if name not in TASK_TYPES:
        raise typer.BadParameter(f"{name!r} is no task type; known: {', '.join(TASK_TYPES)}")
    return name


TaskType = Annotated[
    str,
    typer.Option(
        "--type",
        metavar="TASK_TYPE",
        callback=_known_type,
        help="Task type, whose class of transformers is built.",
    ),
]
DEFAULT_TYPE = next(iter(TASK_TYPES))


def is_server(db: str) -> bool:
    """Whether ``db`` is the URL of a service, which ``--server`` puts in its place."""
    return db.startswith(("http://", "https://"))


def _database_or_server(ctx: typer.Context, db: str) -> str:
    """What a command reads: of a database and a service the one that the command line names, not the environment.

    Raises:
        BadParameter: If both are named in the same way.
    """
    root = ctx.find_root()
    server: str | None = root.params["server"]
    if is_server(db):
        raise typer.BadParameter("a service goes before the command: sparsearch --server URL ...")
    if server is None:
        return db
    if not is_server(server):
        raise typer.BadParameter("--server takes a URL that begins with http:// or https://")
    from_db, from_server = (
        _rank(of.get_parameter_source(name)) for of, name in ((ctx, "db"), (root, "server"))
    )
    if from_db == from_server:
        raise typer.BadParameter("--db and --server are both given: leave one out")
    return db if from_db > from_server else server


def _database(ctx: typer.Context, db: str) -> str:
    """The same for a command that needs a database."""
    found = _database_or_server(ctx, db)
    if is_server(found):
        raise typer.BadParameter("this command needs a database, not a service: give --db")
    return found


def _rank(source: Enum | None) -> int:
    """2 for what stands on the command line, 1 for the environment, 0 for a default."""
    return {"COMMANDLINE": 2, "ENVIRONMENT": 1}.get(source.name if source else "", 0)


def _db_option(chosen: Callable[[typer.Context, str], str]) -> Any:
    return typer.Option(
        "--db",
        envvar=_DB_VARIABLE,
        metavar="URL",
        callback=chosen,
        help="postgresql://USER@HOST/NAME, or an SQLite file.",
    )


Db = Annotated[str, _db_option(_database_or_server)]
Database = Annotated[str, _db_option(_database)]
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
    """A command to type next, on the same database or service, by the name under which this program can be found.

    The environment may name the database, which keeps its password out of what is shown; see ``password_note`` too.
    """
    program = "sparsearch"
    if shutil.which(program) is None and Path(sys.argv[0]).name == program:
        program = os.path.relpath(sys.argv[0])
    if is_server(db):
        named = [] if db == os.environ.get(SERVER_VARIABLE) else ["--server", db]
        return shlex.join([program, *named, *words])
    from sparsearch.results.store.connection.urls import to_paste

    where = [] if db in (DEFAULT_DB, os.environ.get(_DB_VARIABLE)) else ["--db", to_paste(db)]
    return shlex.join([program, *words, *where])


def password_note(db: str) -> str:
    """What to do about a password that ``next_command`` leaves out; empty where it does not."""
    from sparsearch.results.store.connection.urls import has_password

    if is_server(db) or db == os.environ.get(_DB_VARIABLE) or not has_password(db):
        return ""
    return "the password is left out: set PGPASSWORD, or write it to ~/.pgpass"


def reading(db: str) -> AbstractContextManager[StudySource]:
    """The database, opened to read; or a service over one."""
    if is_server(db):
        from sparsearch.service.client.connection import Connection
        from sparsearch.service.client.reader import RemoteReader

        return RemoteReader(Connection(db))
    from sparsearch.results.store.store import Store

    return Store.open(db, create=False)
