"""What is shown of a database URL."""

import pytest

from sparsearch.errors import StoreError
from sparsearch.results.urls import parse_url, without_password


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
