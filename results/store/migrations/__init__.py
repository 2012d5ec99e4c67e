"""Alembic, run from Python: the database's revision, the newest one, and the way there."""

from __future__ import annotations

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection

__all__ = ["SCRIPTS", "VERSION_TABLE", "current", "head", "known", "upgrade"]

SCRIPTS = "sparsearch.results.store:migrations"
"""Where env.py and the revisions are, as ``package:folder`` or a path."""

VERSION_TABLE = "sparsearch_version"
"""Our own, so that another tool's Alembic may live in the same database."""


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", SCRIPTS)
    return config


def head() -> str | None:
    """The newest revision of this version of sparsearch."""
    return ScriptDirectory.from_config(_config()).get_current_head()


def known() -> frozenset[str]:
    """All revisions of this version of sparsearch."""
    return frozenset(s.revision for s in ScriptDirectory.from_config(_config()).walk_revisions())


def current(connection: Connection) -> str | None:
    """The database's revision; None if it has none."""
    context = MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE})
    return context.get_current_revision()


def upgrade(connection: Connection, revision: str = "head") -> None:
    """Bring the database to a revision, the newest if none is given, within the connection's transaction.

    Raises:
        sqlalchemy.exc.SQLAlchemyError: If a revision fails.
    """
    config = _config()
    config.attributes["connection"] = connection
    command.upgrade(config, revision)
