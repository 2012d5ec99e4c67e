"""`sparsearch db`: back a database up, restore, upgrade and check it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from sparsearch.cli.console import errors, output
from sparsearch.cli.options import DEFAULT_DB, Database
from sparsearch.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["backup", "check", "restore", "upgrade"]

Other = Annotated[
    str, typer.Argument(metavar="FILE", help="An SQLite file, or any database's URL.")
]


def _progress(steps: int = 10_000) -> Callable[[str, int], None]:
    """Says every so many rows how far a copy is."""

    def tell(table: str, rows: int) -> None:
        if rows % steps == 0:
            errors().print(f"{table}: {rows:,} rows", soft_wrap=True)

    return tell


def _copy(source: str, target: str) -> None:
    from sparsearch.results.store.connection.urls import without_password
    from sparsearch.results.store.copying import copy_database

    count = copy_database(source, target, _progress())
    studies = f"{count} {'study is' if count == 1 else 'studies are'}"
    output().print(f"{studies} copied to {without_password(target)}", soft_wrap=True)


def backup(out: Other, db: Database = DEFAULT_DB) -> None:
    """Copy one state of the database, also while studies run, into a new SQLite file."""
    _copy(db, out)


def restore(backup: Other, db: Database = DEFAULT_DB) -> None:
    """Copy a backup into a database that has no study; SQLite or PostgreSQL, whatever it was before."""
    _copy(backup, db)


def upgrade(db: Database = DEFAULT_DB) -> None:
    """Bring the database to the revision of this version; back it up first."""
    from sparsearch.results.store.store import Store

    with Store.open(db, create=True) as store:
        output().print(f"database {store.label} is of the newest revision", soft_wrap=True)


def check(db: Database = DEFAULT_DB) -> None:
    """Look through the whole database: its pages, its references, and every structure under its hash."""
    from sparsearch.results.store.copying import check_database

    count, problems = check_database(db)
    if problems:
        raise StoreError("\n".join(problems), "restore a backup, and keep this one to look at")
    output().print(f"nothing is wrong; {count:,} structures have their hashes", soft_wrap=True)
