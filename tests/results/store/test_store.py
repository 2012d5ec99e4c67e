"""The store over SQLite: the conformance suite, and what only a file can do."""

import os
import sqlite3
import threading
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy.exc import OperationalError

from sparsearch.errors import LeaseError, StoreError
from sparsearch.results import Owner, Store
from sparsearch.results.store.connection import sqlite as _sqlite
from sparsearch.results.store.connection.database import Database, open_database
from sparsearch.testing.store_conformance import StoreConformance, sample_outcome, sample_study


class TestSqlite(StoreConformance):
    @pytest.fixture
    def store_url(self, tmp_path: Path) -> str:
        return f"sqlite:///{tmp_path / 'a % b#.db'}"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A database with one finished and one queued trial."""
    file = tmp_path / "sparsearch.db"
    with Store.open(file, create=True) as store:
        store.begin_study(sample_study())
        store.finish("study", 0, sample_outcome())
    return file


def test_url_and_path_name_the_same_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(path.parent)
    for name in (path, str(path), path.name, f"sqlite:///{path}", f"sqlite:///{path.name}"):
        with Store.open(name, create=False) as store:
            assert store.find_study("study").finished == 1


def test_relative_path_survives_a_change_of_folder(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(path.parent)
    with Store.open(path.name, create=False) as store:
        monkeypatch.chdir("/")
        assert len(store.studies()) == 1


@pytest.mark.parametrize(
    ("url", "create", "message"),
    [
        ("missing.db", False, "there is no database"),
        ("no/folder/x.db", True, "folder does not exist"),
        (".", True, "is a folder"),
        ("sqlite://", True, "in memory"),
        ("nonsense://x", True, "nonsense"),
        ("://", True, "no database URL"),
    ],
)
def test_what_cannot_be_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, url: str, create: bool, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StoreError, match=message) as caught:
        Store.open(url, create=create)
    assert "Traceback" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_password_is_not_shown() -> None:
    with pytest.raises(StoreError) as caught:
        Store.open("postgresql+psycopg://me:secret@localhost:1/x", create=False)
    assert "secret" not in str(caught.value)


def test_folder_that_is_not_writable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(StoreError, match="cannot write"):
        Store.open(tmp_path / "x.db", create=True)


def _text(file: Path) -> None:
    file.write_bytes(b"not a database at all, but long enough to look like one. " * 100)


def _half(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def _scrambled(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[100:4096] = b"\xff" * 3996
    file.write_bytes(data)


def _foreign(file: Path) -> None:
    file.unlink()
    with closing(sqlite3.connect(file, isolation_level=None)) as connection:
        connection.execute("CREATE TABLE trials (id INTEGER)")


def _newer(file: Path) -> None:
    with closing(sqlite3.connect(file, isolation_level=None)) as connection:
        connection.execute("UPDATE sparsearch_version SET version_num = '9999'")


@pytest.mark.parametrize("create", [True, False])
@pytest.mark.parametrize(
    ("damage", "message", "hint"),
    [
        (_text, "not a database", "left as it is"),
        (_half, "malformed", "left as it is"),
        (_scrambled, "malformed", "left as it is"),
        (_foreign, "belongs to something else", "--db"),
        (_newer, "'9999'.* newer", "upgrade sparsearch"),
    ],
)
def test_refused_file_is_left_as_it_is(
    path: Path, damage: Callable[[Path], None], message: str, hint: str, create: bool
) -> None:
    damage(path)
    before = path.read_bytes()
    with pytest.raises(StoreError, match=message) as caught:
        Store.open(path, create=create)
    assert hint in caught.value.hint
    assert path.read_bytes() == before


def _damage(file: Path, name: str) -> bytes:
    """Overwrite the root page of a table or an index, and return the file's bytes."""
    with closing(sqlite3.connect(file, isolation_level=None)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        size = connection.execute("PRAGMA page_size").fetchone()[0]
        query = "SELECT rootpage FROM sqlite_master WHERE name = ?"
        (page,) = connection.execute(query, (name,)).fetchone()
    data = bytearray(file.read_bytes())
    data[size * (page - 1) : size * page] = b"Z" * size
    file.write_bytes(data)
    return bytes(data)


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize(
    "name",
    [
        "ix_studies_question",
        "ix_trials_front",
        "ix_trials_state",
        "trials",
        "attempts",
        "rankings",
    ],
)
def test_a_damaged_file_is_not_written_to(
    path: Path, name: str, large: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is damaged, and also where a file is so large that its bulk is not looked at."""
    if large:
        monkeypatch.setattr(_sqlite, "_WHOLE_CHECK_BYTES", 0)
    before = _damage(path, name)
    with pytest.raises(StoreError, match="damaged|malformed") as caught:
        Store.open(path, create=True)
    assert "left as it is" in caught.value.hint
    assert path.read_bytes() == before


def test_damage_during_use_is_not_called_left_as_it_was(path: Path) -> None:
    with Store.open(path, create=True) as store:
        _damage(path, "trials")
        with pytest.raises(StoreError, match="malformed") as caught:
            store.start("study", 1)
        assert "left as it is" not in caught.value.hint and ".recover" in caught.value.hint


@pytest.mark.parametrize("replaced", [False, True])
def test_a_file_that_is_gone_is_noticed(path: Path, tmp_path: Path, replaced: bool) -> None:
    """Before anything is written or read; nothing new appears under its path."""
    with Store.open(path, create=True) as store:
        store.start("study", 1)
        for file in tmp_path.glob("sparsearch.db*"):
            file.unlink()
        if replaced:
            with Store.open(path, create=True) as another:
                another.begin_study(sample_study())
        happened = "was replaced by another file" if replaced else "was removed"
        uses: tuple[Callable[[], object], ...] = (
            lambda: store.finish("study", 1, sample_outcome()),
            lambda: store.renew("study"),
            lambda: store.trials("study"),
        )
        for use in uses:
            with pytest.raises(StoreError, match=f"{happened} while it was in use") as caught:
                use()
            assert "move that file back" in caught.value.hint
    assert path.exists() == replaced


def test_empty_file(tmp_path: Path) -> None:
    file = tmp_path / "x.db"
    file.touch()
    with pytest.raises(StoreError, match="is empty"):
        Store.open(file, create=False)
    with Store.open(file, create=True) as store:
        assert store.studies() == ()


def test_reader_does_not_write(path: Path) -> None:
    with Store.open(path, create=False) as store:
        for write in (
            lambda: store.begin_study(sample_study("x")),
            lambda: store.acquire("study"),
        ):
            with pytest.raises(StoreError, match="readonly") as caught:
                write()
            assert "create=True" in caught.value.hint


def test_reader_during_a_write(path: Path) -> None:
    database = open_database(path, create=True)
    with Store.open(path, create=False) as reader, database.writing() as session:
        session.connection().exec_driver_sql("UPDATE studies SET task = 'changed'")
        assert reader.find_study("study").task == "trec"
        with Store.open(path, create=False) as late:
            assert late.find_study("study").task == "trec"
    database.engine.dispose()
    with Store.open(path, create=False) as reader:
        assert reader.find_study("study").task == "changed"


def test_writer_waits_for_another(path: Path) -> None:
    database = open_database(path, create=True)
    with Store.open(path, create=True) as store:
        with database.writing() as session:
            session.connection().exec_driver_sql("UPDATE studies SET task = 'changed'")
            waiting = threading.Thread(target=store.start, args=("study", 1))
            waiting.start()
            waiting.join(0.2)
            assert waiting.is_alive()
        waiting.join(10)
        assert [t.state for t in store.trials("study")] == ["ok", "running"]
    database.engine.dispose()


def test_full_disk_is_a_store_error_and_the_trial_stays_running(path: Path) -> None:
    with Store.open(path, create=True) as store:
        store.start("study", 1)
    database = open_database(path, create=True)
    with database.engine.connect() as connection:
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar()
        connection.exec_driver_sql(f"PRAGMA max_page_count = {pages}")
    store = Store(database, Owner.current())
    big = replace(sample_outcome(), weights=b"x" * 1_000_000)
    with pytest.raises(StoreError, match="full") as caught:
        store.finish("study", 1, big)
    assert "free some space" in caught.value.hint
    assert [t.state for t in store.trials("study")] == ["ok", "running"]
    store.close()


def test_only_the_first_line_of_a_cause_is_shown(path: Path) -> None:
    database = open_database(path, create=True)
    with pytest.raises(StoreError) as caught, database.reading():
        raise OperationalError("SELECT 1", {}, Exception("first line\nsecond line"))
    assert caught.value.message == f"database {path}: first line"
    database.engine.dispose()


def test_ids_are_not_used_again(path: Path) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        highest = connection.execute("SELECT max(id) FROM trials").fetchone()[0]
        connection.execute("DELETE FROM trials WHERE state = 'queued'")
    with Store.open(path, create=True) as store:
        store.begin_study(sample_study("another", 1))
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        assert connection.execute("SELECT max(id) FROM trials").fetchone()[0] == highest + 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_driver_in_another_process(path: Path) -> None:
    told, tell = os.pipe()
    awaited, end = os.pipe()
    child = os.fork()
    if child == 0:
        store = Store.open(path, create=True)
        store.acquire("study")
        store.start("study", 1)
        os.write(tell, b"!")
        os.read(awaited, 1)
        os._exit(1)
    os.read(told, 1)
    with Store.open(path, create=True) as store:
        with pytest.raises(LeaseError, match=f":{child}"):
            store.acquire("study")
        os.write(end, b"!")
        os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
        # Not collected yet, the child is a zombie: dead, though its pid exists.
        store.acquire("study")
        os.waitpid(child, 0)
        assert [t.number for t in store.queued("study")] == [1]
    for pipe in (told, tell, awaited, end):
        os.close(pipe)


def test_owner_whose_pid_was_given_to_another_process_is_dead() -> None:
    me = Owner.current()
    assert not me.is_dead()
    assert Owner(me.host, me.pid, me.started - 3600).is_dead()
    assert not Owner("elsewhere", me.pid, me.started - 3600).is_dead()


def test_database_is_in_wal_mode_with_foreign_keys(path: Path) -> None:
    database = open_database(path, create=True)
    assert isinstance(database, Database)
    with database.engine.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        assert connection.exec_driver_sql("PRAGMA foreign_keys").scalar() == 1
        assert connection.exec_driver_sql("PRAGMA busy_timeout").scalar() == 30_000
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 1  # NORMAL
    database.engine.dispose()
