"""Opening a database: every check comes before any change; errors become StoreErrors."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import URL, Connection, Engine, inspect
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.orm import Session

from sparsearch.errors import MissingStoreError, StoreError
from sparsearch.results import _postgres, _sqlite, migrations
from sparsearch.results.tables import Base
from sparsearch.results.urls import parse_url, without_password

__all__ = ["BUSY_SECONDS", "Database", "open_database"]

BUSY_SECONDS = 30
"""How long a writer waits for another one."""

_HINTS = (*_sqlite.HINTS, *_postgres.HINTS)


@dataclass(frozen=True)
class Database:
    """An open database.

    Attributes:
        label: Names it in messages, without a password.
        engine: Whose transactions read.
        writer: Whose transactions write; it shares the connections.
    """

    label: str
    engine: Engine
    writer: Engine

    @contextmanager
    def reading(self) -> Iterator[Session]:
        """A session that sees one state of the database.

        Raises:
            StoreError: In place of any SQLAlchemy error.
        """
        with translated(self.label), self.engine.connect() as connection:
            if connection.dialect.name == "sqlite":
                _sqlite.begin(connection, writes=False)
            with Session(connection) as session:
                yield session

    @contextmanager
    def transaction(self) -> Iterator[Connection]:
        """A transaction that writes: all of it is stored at the end, or, after any error, nothing.

        Raises:
            StoreError: In place of any SQLAlchemy error.
        """
        with translated(self.label), self.writer.begin() as connection:
            if connection.dialect.name == "sqlite":
                _sqlite.begin(connection, writes=True)
            yield connection

    @contextmanager
    def writing(self) -> Iterator[Session]:
        """A session in a transaction that writes.

        Raises:
            StoreError: In place of any SQLAlchemy error.
        """
        with self.transaction() as connection, Session(connection) as session:
            yield session
            session.flush()

    def migrate(self) -> None:
        """Create the tables or bring them to the newest revision, in one transaction."""
        with self.transaction() as connection:
            if connection.dialect.name == "postgresql":
                _postgres.lock_schema(connection)
            migrations.upgrade(connection)


@contextmanager
def translated(label: str) -> Iterator[None]:
    """Turn SQLAlchemy's errors into StoreErrors with the first line of the cause."""
    try:
        yield
    except SQLAlchemyError as error:
        cause: object = error.orig if isinstance(error, DBAPIError) else error
        text = str(cause).strip() or type(cause).__name__
        hint = next((hint for pattern, hint in _HINTS if re.search(pattern, text)), "")
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


def _open_postgres(url: URL, create: bool) -> Database:
    label = without_password(url.render_as_string(hide_password=False))
    try:
        with translated(label):
            engines = _postgres.open_engines(url, writable=create, lock_seconds=BUSY_SECONDS)
    except ImportError as error:
        raise StoreError(f"database {label}: {error}", _postgres.INSTALL) from error
    database = Database(label, *engines)
    try:
        if _revision(database, create=create) != migrations.head():
            database.migrate()
    except BaseException:
        database.engine.dispose()
        raise
    return database


def _open_sqlite(url: URL, create: bool) -> Database:
    if url.database in (None, "", ":memory:"):
        raise StoreError("a database in memory would be forgotten", "write sqlite:///FILE")
    path = Path(str(url.database)).absolute()
    _sqlite.check_file(path, create)
    if path.exists():
        # Seen through a read-only connection, a refused file stays byte for byte as it was.
        reader = _sqlite_database(path, writable=False)
        try:
            revision = _revision(reader, create=create)
        except BaseException:
            reader.engine.dispose()
            raise
        if not create:
            return reader
        reader.engine.dispose()
    else:
        revision = None
    database = _sqlite_database(path, writable=True)
    if revision != migrations.head():
        database.migrate()
    return database


def _sqlite_database(path: Path, *, writable: bool) -> Database:
    engine = _sqlite.open_engine(path, writable=writable, lock_seconds=BUSY_SECONDS)
    return Database(str(path), engine, engine)


def _revision(database: Database, *, create: bool) -> str | None:
    """The database's revision, None where it is empty; an error if we may not use it."""
    with translated(database.label), database.engine.connect() as connection:
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
