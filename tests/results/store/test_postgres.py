"""The store over PostgreSQL: the conformance suite, and what only a server can do."""

import psycopg
import pytest

from sparsearch.errors import MissingStoreError, StoreError
from sparsearch.results import Store
from sparsearch.results.store.connection import database
from sparsearch.results.store.reading import queries
from sparsearch.testing.store_conformance import StoreConformance, sample_outcome, sample_study


class TestPostgres(StoreConformance):
    @pytest.fixture
    def store_url(self, postgres_url: str) -> str:
        return postgres_url


@pytest.fixture
def url(postgres_url: str) -> str:
    """A database with one finished and one queued trial."""
    with Store.open(postgres_url, create=True) as store:
        store.begin_study(sample_study())
        store.finish("study", 0, sample_outcome())
    return postgres_url


@pytest.mark.parametrize("scheme", ["postgresql://", "postgres://", "postgresql+psycopg2://"])
def test_the_driver_is_psycopg(url: str, scheme: str) -> None:
    with Store.open(url.replace("postgresql://", scheme), create=False) as store:
        assert store.find_study("study").finished == 1


@pytest.mark.parametrize("create", [True, False])
@pytest.mark.parametrize(
    ("user", "name", "message", "hint"),
    [
        ("guarded:wrong", "postgres", "authentication failed", "PGPASSWORD"),
        ("guarded", "postgres", "no password supplied", "PGPASSWORD"),
        ("nobody", "postgres", 'role "nobody" does not exist', "createuser"),
        ("postgres", "missing", 'database "missing" does not exist', "createdb"),
    ],
)
def test_what_cannot_be_opened(
    postgres_server: str, user: str, name: str, message: str, hint: str, create: bool
) -> None:
    url = postgres_server.format(name).replace("postgres@", f"{user}@")
    with pytest.raises(StoreError, match=message) as caught:
        Store.open(url, create=create)
    assert hint in caught.value.hint
    assert "wrong" not in str(caught.value)


def test_no_server() -> None:
    with pytest.raises(StoreError, match="refused") as caught:
        Store.open("postgresql://me:secret@127.0.0.1:1/x", create=True)
    assert "start the server" in caught.value.hint
    assert "secret" not in str(caught.value)


def test_empty_database(postgres_url: str) -> None:
    with pytest.raises(MissingStoreError, match="is empty"):
        Store.open(postgres_url, create=False)


def test_reader_does_not_write(url: str) -> None:
    with Store.open(url, create=False) as store:
        for write in (
            lambda: store.begin_study(sample_study("x")),
            lambda: store.start("study", 1),
        ):
            with pytest.raises(StoreError, match="read-only") as caught:
                write()
            assert "create=True" in caught.value.hint


def test_tables_of_something_else_are_left_alone(postgres_url: str) -> None:
    with psycopg.connect(postgres_url) as connection:
        connection.execute("CREATE TABLE trials (id INTEGER)")
    with pytest.raises(StoreError, match="belongs to something else"):
        Store.open(postgres_url, create=True)


def test_a_reader_sees_one_state(url: str) -> None:
    opened = database.open_database(url, create=False)
    with Store.open(url, create=True) as store, opened.reading() as session:
        before = queries.find_study(session, "study")
        store.finish("study", 1, sample_outcome())
        session.expire_all()
        assert queries.find_study(session, "study") == before
    with opened.reading() as session:
        assert queries.find_study(session, "study").finished == 2
    opened.engine.dispose()


def test_a_writer_waits_only_so_long(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "BUSY_SECONDS", 1)
    with Store.open(url, create=True) as store, psycopg.connect(url) as other:
        other.execute("SELECT * FROM studies FOR UPDATE")
        with pytest.raises(StoreError, match="lock timeout") as caught:
            store.start("study", 1)
        assert "another process" in caught.value.hint
        other.rollback()
        store.start("study", 1)
        assert [t.state for t in store.trials("study")] == ["ok", "running"]


def test_a_connection_that_the_server_dropped_is_opened_again(url: str) -> None:
    with Store.open(url, create=True) as store, psycopg.connect(url, autocommit=True) as other:
        others = "pid != pg_backend_pid() AND datname = current_database()"
        other.execute(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {others}")
        store.start("study", 1)
        assert [t.state for t in store.trials("study")] == ["ok", "running"]


def database_of(server: str, name: str, made_with: str) -> str:
    """The URL of a new database."""
    with psycopg.connect(server.format("postgres"), autocommit=True) as admin:
        admin.execute(f"CREATE DATABASE {name} {made_with}")
    return server.format(name)


def test_a_database_that_keeps_bytes_as_they_are_is_as_good(postgres_server: str) -> None:
    """What `initdb` makes under LC_ALL=C, as in many containers."""
    made_with = "ENCODING 'SQL_ASCII' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0"
    with Store.open(database_of(postgres_server, "bytes_alone", made_with), create=True) as store:
        store.begin_study(sample_study("d\u00e9j\u00e0 \u65e5\u672c"))
        assert [s.name for s in store.studies()] == ["d\u00e9j\u00e0 \u65e5\u672c"]


def test_a_database_without_a_place_for_all_texts_is_refused(postgres_server: str) -> None:
    made_with = "ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0"
    url = database_of(postgres_server, "latin", made_with)
    with pytest.raises(StoreError, match="its encoding LATIN1 has no place") as caught:
        Store.open(url, create=True)
    assert "createdb --encoding UTF8" in caught.value.hint


def test_dates_are_read_whatever_the_server_writes_by_default(postgres_server: str) -> None:
    url = database_of(postgres_server, "dates", "")
    with psycopg.connect(url, autocommit=True) as admin:
        admin.execute("ALTER DATABASE dates SET DateStyle = 'SQL, DMY'")
    with Store.open(url, create=True) as store:
        store.begin_study(sample_study())
        assert store.studies()[0].created_at.year > 2000
