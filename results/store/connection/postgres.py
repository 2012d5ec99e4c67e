"""PostgreSQL: its engine, and what its errors mean."""

from __future__ import annotations

from typing import Any

from sqlalchemy import URL, Connection, Engine, create_engine, event, func, select

from sparsearch.errors import StoreError

__all__ = ["HINTS", "INSTALL", "lock_schema", "open_engines"]

INSTALL = "pip install 'sparsearch[postgres]'"

_CONNECT_SECONDS = 10
_ENCODINGS = ("UTF8", "SQL_ASCII")
"""The latter keeps bytes as they are."""
_SCHEMA_LOCK = int.from_bytes(b"sparsrch")
"""Key of the advisory lock; any number that nobody else takes will do."""

_SERVER = "start the server, or check host and port in the URL"
_PASSWORD = "check user and password; PGPASSWORD or a .pgpass file may hold the password"
HINTS = (
    ('(database|role) ".*" does not exist', "create it (createdb, createuser), or check the URL"),
    ("onnection refused", _SERVER),
    ("Is the server running", _SERVER),
    ("resolve host", "check the name of the host in the URL"),
    ("timeout expired", _SERVER),
    ("authentication failed", _PASSWORD),
    ("no password supplied", _PASSWORD),
    ("no pg_hba.conf entry", "let this user and host in, in the server's pg_hba.conf"),
    ("permission denied", "GRANT it, or choose a database of your own with --db"),
    ("lock timeout", "another process writes to it; try again when that is done"),
    ("read-only transaction", "open it with create=True"),
    (
        "No space left",
        "free some space, then type the same command: a study continues where it was",
    ),
)
"""(pattern of a message, what to do)."""


def open_engines(url: URL, *, writable: bool, lock_seconds: int) -> tuple[Engine, Engine]:
    """Engines that read and that write; a writer waits for another one only so long.

    Raises:
        ImportError: If the driver is missing.
    """
    ours = {"connect_timeout": _CONNECT_SECONDS, "client_encoding": "utf8"}
    ours = {name: value for name, value in ours.items() if name not in url.query}
    # A study writes every few minutes; by then the server may have dropped a connection.
    engine = create_engine(url, connect_args=ours, pool_pre_ping=True)

    @event.listens_for(engine, "connect")
    def configure(connection: Any, record: object) -> None:
        encoding = connection.info.parameter_status("server_encoding")
        if encoding not in _ENCODINGS:
            raise StoreError(
                f"database {url.database}: its encoding {encoding} has no place for all texts",
                "create it with: createdb --encoding UTF8 --template template0 NAME",
            )
        cursor = connection.cursor()
        cursor.execute("SET DateStyle = 'ISO'")  # the driver reads no other
        cursor.execute(f"SET lock_timeout = '{lock_seconds}s'")
        cursor.close()
        connection.commit()

    reader = engine.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
    if not writable:
        return reader, reader
    # Whatever the server's default: who waited for a lock must see what the other one wrote.
    return reader, engine.execution_options(isolation_level="READ COMMITTED")


def lock_schema(connection: Connection) -> None:
    """Until the transaction ends, nobody else creates or migrates the tables of this database."""
    connection.execute(select(func.pg_advisory_xact_lock(_SCHEMA_LOCK)))
