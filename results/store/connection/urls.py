"""Database URLs: what a user may write, and how it is shown."""

from __future__ import annotations

import re
from pathlib import Path

from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError

from sparsearch.errors import StoreError

__all__ = ["absolute_url", "has_password", "parse_url", "to_paste", "without_password"]

_FORMS = "write sqlite:///FILE, the path of a file, or postgresql://USER@HOST/DATABASE"
_ENCODE = (
    "in user and password write %40 for @, %2F for /, %3F for ?, %23 for # and %3A for :, or leave the password out: "
    "PGPASSWORD or a .pgpass file may hold it"
)
_PASSWORDS = ("password", "sslpassword")
"""Parameters of a URL's query that hold one."""


def without_password(url: str) -> str:
    """A database URL as it may be shown.

    >>> without_password("postgresql://me:secret@host/db?sslmode=require")
    'postgresql://me:***@host/db?sslmode=require'
    """
    hidden = re.sub(r"(?<=://)([^:/@]*):.*@", r"\1:***@", url)
    # Where the host was forgotten, the password stands in place of its port.
    hidden = re.sub(r"(?<=://)([^:/?#@\[]*):(?!\d*(?:[/?#,]|$))[^@]*$", r"\1:***", hidden)
    return re.sub(rf"([?&](?:{'|'.join(_PASSWORDS)})=)[^&]*", r"\1***", hidden)


def has_password(url: str) -> bool:
    """Whether a database URL holds a password.

    Raises:
        StoreError: If it is no URL of ours.
    """
    parsed = parse_url(url)
    return parsed.password is not None or any(key in parsed.query for key in _PASSWORDS)


def to_paste(url: str) -> str:
    """A database URL as a command that is shown may take it: its password, if any, is left out.

    >>> to_paste("postgresql://me:secret@host/db?sslmode=require")
    'postgresql://me@host/db?sslmode=require'

    Raises:
        StoreError: If it is no URL of ours.
    """
    if not has_password(url):
        return url
    public = make_url(url)._replace(password=None).difference_update_query(_PASSWORDS)
    return public.render_as_string(hide_password=False)


def parse_url(url: str | Path) -> URL:
    """The SQLAlchemy URL of an SQLite file or a PostgreSQL database; the latter's driver is psycopg.

    Raises:
        StoreError: If it cannot be read, or names another kind of database.
    """
    if isinstance(url, Path) or "://" not in url:
        _check_is_path(str(url))
        return URL.create("sqlite", database=str(Path(url).expanduser()))
    if not url.startswith("sqlite"):
        _check_one_at(url)
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        # The cause repeats parts of the URL.
        raise StoreError(f"{without_password(url)!r} is no database URL", _FORMS) from None
    if parsed.get_backend_name() in ("postgresql", "postgres"):
        return parsed.set(drivername="postgresql+psycopg")
    if parsed.get_backend_name() == "sqlite":
        _check_plain(parsed)
        return parsed
    raise StoreError(f"database {without_password(url)} is neither SQLite nor PostgreSQL", _FORMS)


def absolute_url(url: str) -> str:
    """The same database from any folder: the path of an SQLite file is made absolute.

    >>> absolute_url("postgresql://host/db")
    'postgresql://host/db'

    Raises:
        StoreError: As ``parse_url``.
    """
    parsed = parse_url(url)
    if parsed.get_backend_name() != "sqlite" or parsed.database in (None, "", ":memory:"):
        return url
    whole = parsed.set(database=str(Path(parsed.database).absolute()))
    return whole.render_as_string(hide_password=False)


def _check_plain(url: URL) -> None:
    """SQLite is opened by our own settings, so that parameters and other drivers would be dropped in silence.

    Raises:
        StoreError: If the URL names any.
    """
    unknown = [f"parameter {name!r}" for name in url.query]
    if url.drivername not in ("sqlite", "sqlite+pysqlite"):
        unknown.append(f"driver {url.drivername!r}")
    if unknown:
        raise StoreError(f"an SQLite database takes no {unknown[0]}", _FORMS)


def _check_one_at(url: str) -> None:
    """An ``@`` ends the user and password, and stands nowhere else (RFC 3986, 3.2.1): else all is read wrongly.

    Raises:
        StoreError: If there is another one; it shows nothing after the user.
    """
    scheme, _, rest = url.partition("://")
    authority = re.split("[/?#]", rest, maxsplit=1)[0]
    if rest.count("@") > min(authority.count("@"), 1):
        user = re.split("[:@/?#]", rest, maxsplit=1)[0]
        raise StoreError(
            f"'{scheme}://{user}...' is no database URL: it has an '@' in the password, or after the host begins",
            _ENCODE,
        )


def _check_is_path(text: str) -> None:
    """A URL with a mistyped ``://`` is no name of a file; shown as one, it would show its password.

    Raises:
        StoreError: If the text begins as such a URL does.
    """
    scheme = re.match(r"(postgres(ql)?|sqlite)(\+\w+)?:", text, re.IGNORECASE)
    if scheme is not None:
        raise StoreError(f"'{scheme[0]}...' is no database URL: '://' is missing", _FORMS)
