"""Opening a database: every check comes before any change; errors become StoreErrors."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from sqlalchemy import URL, Connection, Engine, inspect
from sqlalchemy.exc import SQLAlchemyError, StatementError
from sqlalchemy.orm import Session

from sparsearch.errors import MissingStoreError, StoreError
from sparsearch.results.store import migrations
from sparsearch.results.store.connection import postgres, sqlite
from sparsearch.results.store.connection.urls import parse_url, without_password
from sparsearch.results.store.tables import Base

__all__ = ["BUSY_SECONDS", "Database", "check_creatable", "open_database"]

BUSY_SECONDS = 30
"""How long a writer waits for another one."""

_Hints: TypeAlias = Sequence[tuple[str, str]]
"""(pattern of a message, what to do)."""


@dataclass(frozen=True)
class Database:
    """An open database.

    Attributes:
        label: Names it in messages, without a password.
        engine: Whose transactions read.
        writer: Whose transactions write; it shares the connections.
        hints: For the errors of its driver.
        file: What a writer of SQLite has open; None for all others.
    """

    label: str
    engine: Engine
    writer: Engine
    hints: _Hints
    file: sqlite.OpenFile | None = None

    @contextmanager
    def connected(self, engine: Engine) -> Iterator[Connection]:
        """A connection to the database that was opened, not to what may be under its path by now."""
        if self.file is not None:
            self.file.check()
        with translated(self.label, self.hints), engine.connect() as connection:
            yield connection

    @contextmanager
    def reading(self) -> Iterator[Session]:
        """A session that sees one state of the database.

        Raises:
            StoreError: In place of any SQLAlchemy error, and if an SQLite file was removed or replaced.
        """
        with self.connected(self.engine) as connection:
            if connection.dialect.name == "sqlite":
                sqlite.begin(connection, writes=False)
            with Session(connection) as session:
                yield session

    @contextmanager
    def transaction(self) -> Iterator[Connection]:
        """A transaction that writes: all of it is stored at the end, or, after any error, nothing.

        Raises:
            StoreError: In place of any SQLAlchemy error, and if an SQLite file was removed or replaced.
        """
        with self.connected(self.writer) as connection, connection.begin():
            if connection.dialect.name == "sqlite":
                sqlite.begin(connection, writes=True)
            yield connection

    @contextmanager
    def writing(self) -> Iterator[Session]:
        """A session in a transaction that writes.

        Raises:
            StoreError: As from ``transaction``.
        """
        with self.transaction() as connection, Session(connection) as session:
            yield session
            session.flush()

    def migrate(self) -> None:
        """Create the tables or bring them to the newest revision, in one transaction."""
        with self.transaction() as connection:
            if connection.dialect.name == "postgresql":
                postgres.lock_schema(connection)
            migrations.upgrade(connection)


@contextmanager
def translated(label: str, hints: _Hints) -> Iterator[None]:
    """Turn SQLAlchemy's errors into StoreErrors with the first line of the cause."""
    try:
        yield
    except SQLAlchemyError as error:
        cause: object = error.orig if isinstance(error, StatementError) else error
        text = str(cause).strip() or type(cause).__name__
        hint = next((hint for pattern, hint in hints if re.search(pattern, text)), "")
        raise StoreError(f"database {label}: {text.splitlines()[0]}", hint) from error


def open_database(url: str | Path, *, create: bool) -> Database:
    """Open a database after checking that it is ours and of a revision that we know.

    Args:
        url: An SQLAlchemy URL, or the path of an SQLite file.
        create: Create or migrate it where needed. Without it an SQLite file is opened read-only.

    Raises:
        StoreError: If it is missing, damaged, not writable, not ours, or of another revision.
    """
    parsed = parse_url(url)
    if parsed.get_backend_name() == "sqlite":
        return _open_sqlite(parsed, create)
    return _open_postgres(parsed, create)


def check_creatable(url: str | Path) -> None:
    """Check what can be known of a database that is to be created, and create nothing.

    Raises:
        StoreError: If the URL names none of ours, or an SQLite file cannot be written there.
    """
    parsed = parse_url(url)
    if parsed.get_backend_name() == "sqlite":
        sqlite.check_file(_path_of(parsed), create=True)


def _path_of(url: URL) -> Path:
    """The absolute path of an SQLite file."""
    if url.database in (None, "", ":memory:"):
        raise StoreError("a database in memory would be forgotten", "write sqlite:///FILE")
    return Path(str(url.database)).absolute()


def _open_postgres(url: URL, create: bool) -> Database:
    label = without_password(url.render_as_string(hide_password=False))
    try:
        with translated(label, postgres.HINTS):
            engines = postgres.open_engines(url, writable=create, lock_seconds=BUSY_SECONDS)
    except ImportError as error:
        raise StoreError(f"database {label}: {error}", postgres.INSTALL) from error
    database = Database(label, *engines, postgres.HINTS)
    try:
        if _revision(database, create=create) != migrations.head():
            database.migrate()
    except BaseException:
        database.engine.dispose()
        raise
    return database


def _open_sqlite(url: URL, create: bool) -> Database:
    path = _path_of(url)
    sqlite.check_file(path, create)
    if path.exists():
        # Seen through a read-only connection, a refused file stays byte for byte as it was.
        reader = _sqlite_database(path, writable=False)
        try:
            revision = _revision(reader, create=create)
            if create:
                with reader.connected(reader.engine) as connection:
                    sqlite.check_pages(connection, path)
        except BaseException:
            reader.engine.dispose()
            raise
        if not create:
            return reader
        reader.engine.dispose()
    else:
        revision = None
        _create_file(path)
    database = _sqlite_database(path, writable=True)
    if revision != migrations.head():
        database.migrate()
    return database


def _create_file(path: Path) -> None:
    """An empty file: no later connection may make one, where this one was removed."""
    try:
        path.touch()
    except OSError as error:
        raise StoreError(
            f"cannot create {str(path)!r}: {error.strerror}", "choose another place with --db"
        ) from error


def _sqlite_database(path: Path, *, writable: bool) -> Database:
    engine = sqlite.open_engine(path, writable=writable, lock_seconds=BUSY_SECONDS)
    if writable:
        return Database(str(path), engine, engine, sqlite.WRITER_HINTS, sqlite.OpenFile.at(path))
    return Database(str(path), engine, engine, sqlite.READER_HINTS)


def _revision(database: Database, *, create: bool) -> str | None:
    """The database's revision, None where it is empty; an error if we may not use it."""
    with database.connected(database.engine) as connection:
        tables = set(inspect(connection).get_table_names())
        ours = migrations.VERSION_TABLE in tables
        revision = migrations.current(connection) if ours else None
        shared = connection.dialect.name != "sqlite"
    in_the_way = tables & set(Base.metadata.tables) if shared else tables
    if revision is None and in_the_way:
        raise StoreError(
            f"database {database.label} belongs to something else: it has tables "
            f"({', '.join(sorted(in_the_way)[:3])}) but no revision of sparsearch",
            "choose another with --db",
        )
    if revision is not None and revision not in migrations.known():
        raise StoreError(
            f"database {database.label} has revision {revision!r}, written by a newer sparsearch; "
            f"this one knows up to {migrations.head()!r}",
            "upgrade sparsearch",
        )
    if not create and revision is None:
        raise MissingStoreError(
            f"database {database.label} is empty", "`sparsearch run` fills one"
        )
    if not create and revision != migrations.head():
        raise StoreError(
            f"database {database.label} has the older revision {revision!r}",
            "`sparsearch run` upgrades it",
        )
    return revision
