"""Database URLs: what a user may write, and how it is shown."""

from __future__ import annotations

import re
from pathlib import Path

from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError

from sparsearch.errors import StoreError

__all__ = ["parse_url", "without_password"]

_FORMS = "write sqlite:///FILE, the path of a file, or postgresql://USER@HOST/DATABASE"


def without_password(url: str) -> str:
    """A database URL as it may be shown.

    >>> without_password("postgresql://me:secret@host/db?sslmode=require")
    'postgresql://me:***@host/db?sslmode=require'
    """
    hidden = re.sub(r"(?<=://)([^:/@]*):.*@", r"\1:***@", url)
    return re.sub(r"([?&](?:ssl)?password=)[^&]*", r"\1***", hidden)


def parse_url(url: str | Path) -> URL:
    """The SQLAlchemy URL of an SQLite file or a PostgreSQL database; the latter's driver is psycopg.

    Raises:
        StoreError: If it cannot be read, or names another kind of database.
    """
    if isinstance(url, Path) or "://" not in url:
        return URL.create("sqlite", database=str(url))
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError) as error:
        raise StoreError(f"{without_password(url)!r} is no database URL", _FORMS) from error
    if parsed.get_backend_name() in ("postgresql", "postgres"):
        return parsed.set(drivername="postgresql+psycopg")
    if parsed.get_backend_name() == "sqlite":
        return parsed
    raise StoreError(f"database {without_password(url)} is neither SQLite nor PostgreSQL", _FORMS)
