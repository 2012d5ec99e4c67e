"""SQLite: its file, its engine, and what its errors mean."""

from __future__ import annotations

import os
import sqlite3
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, NullPool, QueuePool, create_engine, event, inspect

from sparsearch.errors import MissingStoreError, StoreError

__all__ = [
    "READER_HINTS",
    "WRITER_HINTS",
    "OpenFile",
    "begin",
    "check_file",
    "check_pages",
    "open_engine",
]

_HINTS = (
    (
        "disk is full",
        "free some space, then type the same command: a study continues where it was",
    ),
    ("locked", "another process writes to it; try again when that is done"),
    ("readonly", "open it with create=True, and check the permissions of the file and its folder"),
    ("unable to open", "check the path, and the permissions of the file and its folder"),
)
_LEFT_ALONE = "the file was left as it is; restore a copy of it, or choose another with --db"
READER_HINTS = (("malformed|not a database", _LEFT_ALONE), *_HINTS)
"""(pattern of a message, what to do) of a connection that writes nothing."""
WRITER_HINTS = (
    (
        "malformed|not a database",
        "the file was damaged after it was opened, and may hold the last outcomes: keep it, and restore an older copy "
        "or what `sqlite3 FILE .recover` saves",
    ),
    *_HINTS,
)
"""The same of one that writes."""

_WHOLE_CHECK_BYTES = 2**30
_LARGE_TABLES = {"structures", "placements", "weights"}


@dataclass(frozen=True)
class OpenFile:
    """The database file that connections have open, to be told from another one under its path."""

    path: Path
    device: int
    inode: int

    @classmethod
    def at(cls, path: Path) -> OpenFile:
        """The file that is there now."""
        status = path.stat()
        return cls(path, status.st_dev, status.st_ino)

    def check(self) -> None:
        """Connections would go on reading and writing what nobody will find again.

        Raises:
            StoreError: If the file was removed or replaced.
        """
        try:
            there = OpenFile.at(self.path)
        except FileNotFoundError:
            there = None
        if there == self:
            return
        happened = "was removed" if there is None else "was replaced by another file"
        raise StoreError(
            f"database {str(self.path)!r} {happened} while it was in use: what was stored is in the file that was "
            "there before",
            "move that file back, with its -wal file, and type the same command to continue; if it is gone, the same "
            "command begins anew",
        )


def check_file(path: Path, create: bool) -> None:
    """Check what can be known of a database file without opening it.

    Raises:
        StoreError: If it is missing and not to be created, a folder, or cannot be written.
    """
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
        raise StoreError(f"cannot write to {str(path)!r}", "choose another place with --db")


def check_pages(connection: Connection, path: Path) -> None:
    """Check that pages and indexes are whole: a damaged file is not written to.

    It takes some 2 s per GB; of a file above 1 GB the bulk is left out: structures, their placements, and weights.

    Raises:
        StoreError: If it is damaged.
        sqlalchemy.exc.DatabaseError: If it is so damaged that SQLite gives up.
    """
    checks = ["1"]
    if path.stat().st_size > _WHOLE_CHECK_BYTES:
        checks = sorted(set(inspect(connection).get_table_names()) - _LARGE_TABLES)
    for check in checks:
        found = connection.exec_driver_sql(f"PRAGMA quick_check({check})").scalars().first()
        if found != "ok":
            raise StoreError(f"database {path} is damaged: {found}", _LEFT_ALONE)


def open_engine(path: Path, *, writable: bool, lock_seconds: int) -> Engine:
    """The engine of a file that is there, in WAL mode; a writer waits for another one only so long."""
    mode = "rw" if writable else "ro"
    # A reader in WAL mode writes beside the file. One that may not, opens the file anew for each answer.
    looks = not writable and not os.access(path.parent, os.W_OK)

    def connect() -> sqlite3.Connection:
        still = "&immutable=1" if looks and not _wal(path).exists() else ""
        return sqlite3.connect(
            f"{path.as_uri()}?mode={mode}{still}",
            uri=True,
            timeout=lock_seconds,
            isolation_level=None,
            check_same_thread=False,
        )

    engine = create_engine(
        "sqlite://",
        creator=connect,
        poolclass=NullPool if looks else QueuePool,
    )

    @event.listens_for(engine, "connect")
    def configure(connection: Any, record: object) -> None:
        cursor = connection.cursor()
        cursor.execute("PRAGMA foreign_keys = ON")
        # 64 MB instead of 2: among a million structures, the inner pages of every index stay at hand.
        cursor.execute("PRAGMA cache_size = -65536")
        if writable:
            _enter_wal(cursor, lock_seconds)
            # A power cut may undo the last outcomes, whole; those trials then run again.
            cursor.execute("PRAGMA synchronous = NORMAL")
            # 64 MB: a checkpoint syncs, and pages that several outcomes change are copied once.
            cursor.execute("PRAGMA wal_autocheckpoint = 16000")
        cursor.close()

    return engine


def begin(connection: Connection, *, writes: bool) -> None:
    """Begin the transaction: the driver would do so late, and leave reads and DDL outside of it.

    A writer that began as a reader could not wait for another one.
    """
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _enter_wal(cursor: sqlite3.Cursor, lock_seconds: int) -> None:
    """Switch to WAL mode; while another connection does so, SQLite refuses at once, whatever the timeout."""
    give_up = time.monotonic() + lock_seconds
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
