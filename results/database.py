"""Opening a database: every check comes before any change; errors become StoreErrors."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Engine, create_engine, event, inspect, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, SQLAlchemyError
from sqlalchemy.orm import Session

from sparsearch.errors import MissingStoreError, StoreError
from sparsearch.results import migrations
from sparsearch.results.tables import Base

__all__ = ["BUSY_SECONDS", "Database", "open_database"]

BUSY_SECONDS = 30
"""How long a writer waits for another one on SQLite."""

_WRITES = "sparsearch_writes"

_HINTS = (
    ("full", "free some space, then type the same command: a study continues where it was"),
    ("locked", "another process writes to it; try again when that is done"),
    ("readonly", "open it with create=True, and check the permissions of the file and its folder"),
    ("malformed", "the file was left as it is; restore a copy of it, or choose another with --db"),
    ("not a database", "the file was left as it is; choose another with --db"),
    ("unable to open", "check the path, and the permissions of the file and its folder"),
)


@dataclass(frozen=True)
class Database:
    """An open database; ``label`` names it in messages, without a password."""

    label: str
    engine: Engine
    _writer: Engine = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Derive the engine whose transactions write; it shares the connections."""
        writer = self.engine.execution_options(**{_WRITES: True})
        object.__setattr__(self, "_writer", writer)

    @contextmanager
    def reading(self) -> Iterator[Session]:
        """A session that sees one state of the database.

        Raises:
            StoreError: In place of any SQLAlchemy error.
        """
        with translated(self.label), Session(self.engine) as session:
            yield session

    @contextmanager
    def writing(self) -> Iterator[Session]:
        """One transaction: all of it is stored at the end, or, after any error, nothing.

        Raises:
            StoreError: In place of any SQLAlchemy error.
        """
        with translated(self.label), Session(self._writer) as session, session.begin():
            yield session

    def migrate(self) -> None:
        """Create the tables or bring them to the newest revision, in one transaction."""
        with translated(self.label), self._writer.begin() as connection:
            migrations.upgrade(connection)


@contextmanager
def translated(label: str) -> Iterator[None]:
    """Turn SQLAlchemy's errors into StoreErrors with the first line of the cause."""
    try:
        yield
    except SQLAlchemyError as error:
        cause: object = error.orig if isinstance(error, DBAPIError) else error
        text = (str(cause).strip() or type(cause).__name__).splitlines()[0]
        hint = next((hint for word, hint in _HINTS if word in text), "")
        raise StoreError(f"database {label}: {text}", hint) from error


def open_database(url: str | Path, *, create: bool) -> Database:
    """Open a database after checking that it is ours and of a revision that we know.

    Args:
        url: An SQLAlchemy URL, or the path of an SQLite file.
        create: Create or migrate it where needed. Without it an SQLite file is opened read-only.

    Raises:
        StoreError: If it is missing, damaged, not writable, not ours, or of another revision.
    """
    parsed = _parse(url)
    if parsed.get_backend_name() == "sqlite":
        return _open_sqlite(parsed, create)
    label = parsed.render_as_string(hide_password=True)
    try:
        with translated(label):
            database = Database(label, create_engine(parsed))
    except ImportError as error:
        raise StoreError(f"database {label}: {error}", f"pip install {error.name}") from error
    if _revision(database, create=create) != migrations.head():
        database.migrate()
    return database


def _parse(url: str | Path) -> URL:
    if isinstance(url, Path) or "://" not in url:
        return URL.create("sqlite", database=str(url))
    try:
        return make_url(url)
    except (ArgumentError, ValueError) as error:
        raise StoreError(
            f"{url!r} is no database URL", "write sqlite:///FILE, or the path of a file"
        ) from error


def _open_sqlite(url: URL, create: bool) -> Database:
    if url.database in (None, "", ":memory:"):
        raise StoreError("a database in memory would be forgotten", "write sqlite:///FILE")
    path = Path(str(url.database)).absolute()
    _check_file(path, create)
    if path.exists():
        # Seen through a read-only connection, a refused file stays byte for byte as it was.
        reader = Database(str(path), _sqlite_engine(path, writable=False))
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
    database = Database(str(path), _sqlite_engine(path, writable=True))
    if revision != migrations.head():
        database.migrate()
    return database


def _check_file(path: Path, create: bool) -> None:
    if path.is_dir():
        raise StoreError(f"{str(path)!r} is a folder", "give the path of a database file")
    if not create and not path.exists():
        raise MissingStoreError(
            f"there is no database {str(path)!r}",
            "`sparsearch run` creates one; choose another with --db",
        )
    if create and not path.parent.is_dir():
        raise StoreError(
            f"cannot create {str(path)!r}: its folder does not exist", f"mkdir -p {path.parent}"
        )
    writable = os.access(path.parent, os.W_OK) and (not path.exists() or os.access(path, os.W_OK))
    if create and not writable:
        raise MissingStoreError(f"cannot write to {str(path)!r}", "choose another place with --db")


def _sqlite_engine(path: Path, *, writable: bool) -> Engine:
    mode = "rwc" if writable else "ro"
    if not writable and not os.access(path.parent, os.W_OK) and not _wal(path).exists():
        # A reader in WAL mode writes beside the file; where it cannot, nobody else does either.
        mode += "&immutable=1"
    engine = create_engine(
        f"sqlite:///{path.as_uri()}?mode={mode}&uri=true",
        connect_args={"timeout": BUSY_SECONDS, "isolation_level": None},
    )

    @event.listens_for(engine, "connect")
    def configure(connection: Any, record: object) -> None:
        cursor = connection.cursor()
        cursor.execute("PRAGMA foreign_keys = ON")
        if writable:
            _enter_wal(cursor)
        cursor.close()

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        # The driver's own BEGIN comes late and leaves reads and DDL outside the transaction; a
        # writer that starts as a reader cannot wait for another writer.
        writes = connection.get_execution_options().get(_WRITES, False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine


def _enter_wal(cursor: sqlite3.Cursor) -> None:
    """Switch to WAL mode; while another connection does so, SQLite refuses at once, whatever the timeout."""
    give_up = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            cursor.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > give_up:
                raise
            time.sleep(0.01)
        else:
            return


def _wal(path: Path) -> Path:
    return path.with_name(f"{path.name}-wal")


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
        raise StoreError(f"database {database.label} is empty", "`sparsearch run` fills one")
    if not create and revision != migrations.head():
        raise StoreError(
            f"database {database.label} has the older revision {revision!r}",
            "`sparsearch run` upgrades it",
        )
    return revision
