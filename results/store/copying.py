"""Backups: a whole database copied into another, and looked through."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import Connection, func, insert, select, text, update

from sparsearch.errors import SparsearchError, StoreError
from sparsearch.results.store.connection.database import Database, open_database
from sparsearch.results.store.connection.urls import parse_url
from sparsearch.results.store.tables import Base, StructureRow, StudyRow
from sparsearch.spaces.structure import Structure

__all__ = ["check_database", "copy_database"]

_ROWS = 500
_SHOWN = 10


def copy_database(
    source: str, target: str, copied: Callable[[str, int], None] = lambda table, rows: None
) -> int:
    """Copy all studies from one state of a database into another one that has none, of either kind.

    Nobody holds a study of the copy: what ran is queued again by whoever continues it.

    Args:
        source: URL, or the path of an SQLite file.
        target: Likewise; an SQLite file that does not exist yet is made.
        copied: Told a table and how many rows of it are copied, now and then.

    Returns:
        The number of studies.

    Raises:
        StoreError: If one of them cannot be used, or the target has studies. Nothing is copied then.
    """
    made = _new_file(target)
    with _opened(source, create=False) as read:
        try:
            with (
                _opened(target, create=True) as write,
                read.reading() as session,
                write.transaction() as connection,
            ):
                return _copy(session.connection(), connection, write, copied)
        except BaseException:
            if made is not None:  # closed by now, with what SQLite keeps beside it
                for end in ("", "-wal", "-shm"):
                    Path(f"{made}{end}").unlink(missing_ok=True)
            raise


@contextmanager
def _opened(url: str, *, create: bool) -> Iterator[Database]:
    database = open_database(url, create=create)
    try:
        yield database
    finally:
        database.engine.dispose()


def _new_file(url: str) -> Path | None:
    """The SQLite file that opening a database to write makes; None where there is one, or it is no file."""
    parsed = parse_url(url)
    if parsed.get_backend_name() != "sqlite" or not parsed.database:
        return None
    path = Path(parsed.database)
    return None if path.exists() else path


def _copy(
    source: Connection,
    target: Connection,
    database: Database,
    copied: Callable[[str, int], None],
) -> int:
    if target.execute(select(func.count()).select_from(StudyRow)).scalar_one():
        raise StoreError(
            f"database {database.label} has studies already", "copy into one that has none"
        )
    for table in Base.metadata.sorted_tables:
        count = 0
        rows = source.execution_options(yield_per=_ROWS).execute(select(table))
        for part in rows.mappings().partitions():
            target.execute(insert(table), [dict(row) for row in part])
            count += len(part)
            copied(table.name, count)
        if target.dialect.name == "postgresql" and "id" in table.columns:
            # The next row gets an id of its own.
            name = table.name
            highest = f"(SELECT COALESCE(MAX(id), 0) + 1 FROM {name})"
            target.execute(
                text(f"SELECT setval(pg_get_serial_sequence('{name}', 'id'), {highest}, false)")
            )
    free = dict.fromkeys(
        ("owner_host", "owner_pid", "owner_started", "lease_until", "stop_asked_at")
    )
    target.execute(update(StudyRow).values(**free))
    return target.execute(select(func.count()).select_from(StudyRow)).scalar_one()


def check_database(url: str) -> tuple[int, list[str]]:
    """Look through a whole database: its pages, its references, and every structure under its hash.

    Args:
        url: URL, or the path of an SQLite file.

    Returns:
        The number of structures, and what is wrong, ten things at most.

    Raises:
        StoreError: If it cannot be opened.
    """
    with _opened(url, create=False) as database, database.reading() as session:
        connection = session.connection()
        wrong = _sqlite_problems(connection) if connection.dialect.name == "sqlite" else []
        count = 0
        query = select(StructureRow.hash, StructureRow.document)
        for name, document in connection.execution_options(yield_per=_ROWS).execute(query):
            count += 1
            if len(wrong) < _SHOWN and (problem := _structure_problem(name, document)):
                wrong.append(problem)
        return count, wrong[:_SHOWN]


def _sqlite_problems(connection: Connection) -> list[str]:
    pages = [row[0] for row in connection.execute(text(f"PRAGMA integrity_check({_SHOWN})"))]
    broken = connection.execute(text("PRAGMA foreign_key_check")).all()
    dangling = [f"{row[0]}: row {row[1]} refers to nothing in {row[2]}" for row in broken]
    return [problem for problem in pages if problem != "ok"] + dangling


def _structure_problem(name: str, document: str) -> str:
    try:
        found = Structure.from_json(document).hash
    except (SparsearchError, ValueError) as error:
        return f"structure {name[:12]} cannot be read: {error}"
    return "" if found == name else f"structure {name[:12]} has the content of {found[:12]}"
