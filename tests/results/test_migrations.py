"""Revisions: equal to the tables, atomic, and run only by who may."""

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from sparsearch.errors import StoreError
from sparsearch.results import Store, migrations
from sparsearch.results.conformance import sample_outcome, sample_study
from sparsearch.results.database import open_database
from sparsearch.results.tables import Base

_SECOND = """
import sqlalchemy as sa
from alembic import op

revision = "9999"
down_revision = "{head}"


def upgrade():
    op.add_column("trials", sa.Column("extra", sa.Text()))
    {more}
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "sparsearch.db"
    with Store.open(file, create=True) as store:
        store.begin_study(sample_study())
        store.finish("study", 0, sample_outcome())
    return file


def _next_version(folder: Path, monkeypatch: pytest.MonkeyPatch, more: str = "") -> None:
    """Pretend to be a later sparsearch, with one revision more."""
    shutil.copytree(Path(migrations.__file__).parent, folder / "migrations")
    (folder / "migrations" / "versions" / "r9999.py").write_text(
        _SECOND.format(more=more, head=migrations.head())
    )
    monkeypatch.setattr(migrations, "SCRIPTS", str(folder / "migrations"))


def _columns(path: Path) -> list[str]:
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        return [row[1] for row in connection.execute("PRAGMA table_info(trials)")]


def test_revisions_make_the_tables(path: Path) -> None:
    database = open_database(path, create=True)
    with database.engine.connect() as connection:
        options = {"version_table": migrations.VERSION_TABLE, "compare_type": True}
        context = MigrationContext.configure(connection, opts=options)
        assert compare_metadata(context, Base.metadata) == []
        assert migrations.current(connection) == migrations.head()
    database.engine.dispose()


def test_older_database_is_upgraded_by_a_writer_only(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _next_version(tmp_path, monkeypatch)
    with pytest.raises(StoreError, match="older revision '0003'") as caught:
        Store.open(path, create=False)
    assert "sparsearch run" in caught.value.hint
    assert "extra" not in _columns(path)
    with Store.open(path, create=True) as store:
        assert store.find_study("study").finished == 1
    assert "extra" in _columns(path)
    with Store.open(path, create=False) as store:
        assert len(store.studies()) == 1


def test_revision_that_fails_changes_nothing(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _next_version(tmp_path, monkeypatch, more='op.execute("SELECT * FROM nowhere")')
    with pytest.raises(StoreError, match="nowhere"):
        Store.open(path, create=True)
    assert "extra" not in _columns(path)
    monkeypatch.undo()
    with Store.open(path, create=True) as store:
        assert len(store.studies()) == 1


def test_another_tools_alembic_may_share_the_file(path: Path) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("CREATE TABLE alembic_version (version_num TEXT)")
        connection.execute("INSERT INTO alembic_version VALUES ('theirs')")
    with Store.open(path, create=True) as store:
        assert len(store.studies()) == 1
