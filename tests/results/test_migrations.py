"""Revisions: equal to the tables, atomic, and run only by who may."""

import itertools
import random
import shutil
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import MetaData, create_engine, insert

from sparsearch.errors import StoreError
from sparsearch.results import Store, migrations
from sparsearch.results.conformance import sample_outcome, sample_structure, sample_study
from sparsearch.results.database import open_database
from sparsearch.results.oracle import check_answers
from sparsearch.results.tables import Base
from sparsearch.results.urls import parse_url
from sparsearch.spaces.ranking import Ranking

_NEXT = """
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
    revision = _NEXT.format(head=migrations.head(), more=more)
    (folder / "migrations" / "versions" / "r9999.py").write_text(revision)
    monkeypatch.setattr(migrations, "SCRIPTS", str(folder / "migrations"))


def _columns(path: Path) -> list[str]:
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        return [row[1] for row in connection.execute("PRAGMA table_info(trials)")]


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database of each backend."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'new.db'}"
    return str(request.getfixturevalue("postgres_url"))


def test_revisions_make_the_tables(url: str) -> None:
    database = open_database(url, create=True)
    with database.engine.connect() as connection:
        options = {"version_table": migrations.VERSION_TABLE, "compare_type": True}
        context = MigrationContext.configure(connection, opts=options)
        assert compare_metadata(context, Base.metadata) == []
        assert migrations.current(connection) == migrations.head()
    database.engine.dispose()


def _clustered(url: str) -> set[str]:
    """The tables that SQLite keeps in the order of their key."""
    with create_engine(parse_url(url)).connect() as connection:
        sql = connection.exec_driver_sql(
            "SELECT name, sql FROM sqlite_master WHERE type = 'table'"
        )
        assert connection.exec_driver_sql("PRAGMA foreign_key_check").all() == []
        return {name for name, statement in sql if "WITHOUT ROWID" in statement}


def _first_revision(url: str) -> list[dict[str, Any]]:
    """Make a database as the first version did, and return its trials."""
    engine = create_engine(parse_url(url))
    draw = random.Random(0)
    structures = {params: sample_structure(params) for params in range(1, 7)}
    now = datetime.now(UTC).replace(microsecond=0)
    trials = []
    for study, number in itertools.product((1, 2), range(60)):
        params, score = draw.randrange(1, 7), draw.randrange(5) / 4
        ok = draw.random() < 0.8
        trials.append(
            dict(study_id=study, number=number, strategy="s3pet", seed=number, attempts=1)
            | dict(state="ok" if ok else "failed", feasible=ok, recommendable=ok, message="")
            | dict(model="toy", task="trec", backbone_params=1_000_000, head_params=3)
            | dict(budget={"max_trainable_params": 100, "text": "0.01%"}, environment=None)
            | dict(score=score if ok else None, structure_hash=structures[params].hash)
            | dict(trainable_params=params, inference_flops_ratio=draw.choice([0.5, 1.0]))
            | dict(finished_at=now)
        )
    draw.shuffle(trials)
    with engine.begin() as connection:
        migrations.upgrade(connection, "0001")
        tables = MetaData()
        tables.reflect(connection)
        rows = {
            "studies": [
                dict(name=f"study-{i}", config="{}", model="toy", task="trec")
                | dict(metric="accuracy", backbone_params=1_000_000, created_at=now)
                for i in (1, 2)
            ],
            "structures": [
                dict(hash=s.hash, document=s.to_json(), trainable_params=s.trainable_params)
                for s in structures.values()
            ],
            "trials": trials,
            "measurements": [  # ids count from 1
                dict(trial_id=i + 1, metric="weight_sparsity", split="test", value=0.5)
                for i in range(len(trials))
                if trials[i]["study_id"] == 2 and i % 3 == 0
            ],
            "rankings": [
                dict(key="key", strategy="s3pet", seed=0, steps=1, seconds=1.0, scores=[0.5])
                | dict(created_at=now)
            ],
        }
        for name, values in rows.items():
            connection.execute(insert(tables.tables[name]), values)
    engine.dispose()
    return trials


def test_first_revision_is_brought_up_to_date(url: str) -> None:
    """Data included: no trial is lost or changed, and ``best`` and ``pareto`` know them all."""
    trials = sorted(_first_revision(url), key=lambda t: (t["study_id"], t["number"]))
    with pytest.raises(StoreError, match="older revision '0001'"):
        Store.open(url, create=False)
    with ThreadPoolExecutor(3) as pool:  # several drivers, of which one migrates
        for driver in pool.map(lambda _: Store.open(url, create=True), range(3)):
            driver.close()
    with Store.open(url, create=True) as store:
        records = store.trials("study-1") + store.trials("study-2")
        keys = ("number", "state", "score", "trainable_params", "inference_flops_ratio")
        assert [[getattr(r, k) for k in keys] for r in records] == [
            [t[k] for k in keys] for t in trials
        ]
        assert {r.ranking_key for r in records} == {None}
        assert {r.weight_sparsity for r in store.trials("study-1")} == {0.0}
        assert {r.weight_sparsity for r in store.trials("study-2")} == {0.0, 0.5}
        assert store.ranking("key") == Ranking((0.5,), "s3pet", 0, 1, 1.0)
        check_answers(store)
        store.begin_study(sample_study())
        store.finish("study", 0, sample_outcome(2.0))
        check_answers(store)
    if url.startswith("sqlite"):
        assert _clustered(url) == {"placements", "measurements", "attempts"}


def test_older_database_is_upgraded_by_a_writer_only(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = migrations.head()
    _next_version(tmp_path, monkeypatch)
    with pytest.raises(StoreError, match=f"older revision '{old}'") as caught:
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
