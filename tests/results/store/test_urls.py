"""What is shown of a database URL."""

import pytest

from sparsearch.errors import StoreError
from sparsearch.results.store.connection.urls import (
    has_password,
    parse_url,
    to_paste,
    without_password,
)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://me:secret@host/db",
        "postgresql+psycopg://me:secret@host:5432/db?sslmode=require",
        "postgresql://me:s@crets@cret@host/db",
        "postgresql://host/db?user=me&password=secret&sslmode=require",
        "postgresql://me:secret@host:no-port/db",
    ],
)
def test_passwords_are_not_shown(url: str) -> None:
    shown = without_password(url)
    assert "cret" not in shown and "***" in shown and "host" in shown
    assert ("sslmode=require" in url) == ("sslmode=require" in shown)


@pytest.mark.parametrize("url", ["sqlite:///a:b@c.db", "x.db", "postgresql://me@host/db"])
def test_the_rest_is(url: str) -> None:
    assert without_password(url) == url


@pytest.mark.parametrize("url", ["mysql://me:secret@host/db", "postgresql://me:secret@host:x/db"])
def test_what_is_no_database_of_ours(url: str) -> None:
    with pytest.raises(StoreError) as caught:
        parse_url(url)
    assert "secret" not in str(caught.value) and "postgresql://" in caught.value.hint


def test_a_path_under_home_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert parse_url("~/.x.db").database == "/home/me/.x.db"


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("sqlite:///x.db?mode=ro", "takes no parameter 'mode'"),
        ("sqlite:///x.db?timeout=abc", "takes no parameter 'timeout'"),
        ("sqlite+aiosqlite:///x.db", "takes no driver 'sqlite\\+aiosqlite'"),
    ],
)
def test_what_sqlite_would_drop_in_silence_is_refused(url: str, message: str) -> None:
    with pytest.raises(StoreError, match=message):
        parse_url(url)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://me:p@ss/w:rd#1%20@127.0.0.1:5432/studies",
        "postgresql://me:p@ss@127.0.0.1/studies",
        "postgresql://me:p/ss@127.0.0.1/studies",
        "postgresql://me:p?ss@127.0.0.1/studies",
        "postgresql://me:p#ss@127.0.0.1/studies",
        "postgres://me:p@ss/w@127.0.0.1",
        "postgresql+psycopg://me:p@127.0.0.1/studies?password=p@ss",
        "mysql://me:p@ss@host/db",
    ],
)
def test_an_at_after_the_host_begins_is_refused_and_nothing_after_the_user_is_shown(
    url: str,
) -> None:
    with pytest.raises(StoreError, match="'@'") as caught:
        parse_url(url)
    shown = (
        f"'{url.partition('://')[0]}://me...' is no database URL: it has an '@' in the password, "
    )
    assert caught.value.message == f"{shown}or after the host begins"
    assert "write %40 for @" in caught.value.hint


@pytest.mark.parametrize(
    "url", ["postgresql://me:secret", "postgresql://me:secret/db", "postgresql://me:12secret?x=1"]
)
def test_a_password_in_place_of_a_port_is_not_shown(url: str) -> None:
    with pytest.raises(StoreError, match=r"me:\*\*\*") as caught:
        parse_url(url)
    assert "secret" not in str(caught.value)
    assert caught.value.__suppress_context__, "the cause names what it took for a port"


@pytest.mark.parametrize(
    "url", ["postgresql:/me:secret@host/db", "postgres:me:secret@host/db", "sqlite:/me/x.db"]
)
def test_a_url_without_its_slashes_is_no_file(url: str) -> None:
    with pytest.raises(StoreError, match="'://' is missing") as caught:
        parse_url(url)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    ["postgresql://host:5432/db", "postgresql://a:1,b:2/db", "postgresql://me@[::1]:5432/db"],
)
def test_a_port_is_shown(url: str) -> None:
    assert without_password(url) == url


@pytest.mark.parametrize(
    ("url", "pasted"),
    [
        ("postgresql://me:secret@host:5432/db", "postgresql://me@host:5432/db"),
        ("postgresql://me:p%40ss@host/db", "postgresql://me@host/db"),
        (
            "postgresql://host/db?user=me&password=secret&sslpassword=secret&sslmode=require",
            "postgresql://host/db?sslmode=require&user=me",
        ),
        ("postgresql://me@host/db", None),
        ("x.db", None),
        ("sqlite:///a:b@c.db", None),
    ],
)
def test_what_can_be_pasted_has_no_password(url: str, pasted: str | None) -> None:
    assert has_password(url) == (pasted is not None)
    shown = to_paste(url)
    if pasted is None:
        assert shown == url
        return
    assert "***" not in shown and not has_password(shown)
    assert parse_url(shown) == parse_url(pasted)
