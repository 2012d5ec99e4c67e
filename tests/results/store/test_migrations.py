"""Revisions: equal to the tables, atomic, and run only by who may."""

import itertools
import json
import math
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
from sqlalchemy import Engine, MetaData, create_engine, insert, inspect, text

from sparsearch.errors import StoreError
from sparsearch.results import BestQuery, Store
from sparsearch.results.store import migrations
from sparsearch.results.store.connection.database import open_database
from sparsearch.results.store.connection.urls import parse_url
from sparsearch.results.store.tables import Base
from sparsearch.spaces.ranking import Ranking
from sparsearch.testing.store_conformance import (
    sample_outcome,
    sample_structure,
    sample_study,
    task_config,
)
from sparsearch.testing.store_reference import check_answers

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
        stored = {r.trainable_params: r.stored_bytes for r in records if r.state == "ok"}
        assert stored == {params: 4 * params + 1 for params in range(1, 7)}
        assert {r.stored_bytes for r in records if r.state != "ok"} == {None}
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


REVISIONS = [
    "0001",
    "0002",
    "0003",
    "0004",
    "0005",
    "0006",
    "0007",
    "0008",
    "0009",
    "0010",
    "0011",
]


def test_every_revision_is_tried() -> None:
    assert set(REVISIONS) == migrations.known()


@pytest.mark.parametrize("revision", REVISIONS)
def test_ids_are_not_used_again_in_a_database_of_any_revision(url: str, revision: str) -> None:
    """A rebuilt table loses AUTOINCREMENT, and a new trial would inherit what was stored for a deleted one."""
    _first_revision(url)
    engine = create_engine(parse_url(url))
    with engine.begin() as connection:
        migrations.upgrade(connection, revision)
    Store.open(url, create=True).close()
    highest = {}
    with engine.begin() as connection:
        for table in ("trials", "studies"):
            highest[table] = connection.scalar(text(f"SELECT max(id) FROM {table}"))
        connection.execute(text("DELETE FROM measurements"))
        connection.execute(text("DELETE FROM trials WHERE study_id = 2 OR number > 50"))
        connection.execute(text("DELETE FROM studies WHERE id = 2"))
    with Store.open(url, create=True) as store:
        store.begin_study(sample_study("another", 1))
    with engine.begin() as connection:
        for table, id_ in highest.items():
            assert connection.scalar(text(f"SELECT max(id) FROM {table}")) > id_
    engine.dispose()


@pytest.mark.parametrize("revision", REVISIONS)
def test_a_migrated_file_keeps_what_its_tables_promise(tmp_path: Path, revision: str) -> None:
    """Batch mode would drop AUTOINCREMENT, collations, triggers and checks without a word."""

    def promises(engine: Engine) -> dict[str, list[int]]:
        words = ("AUTOINCREMENT", "WITHOUT ROWID", "COLLATE", "CHECK", "UNIQUE", "REFERENCES")
        query = "SELECT tbl_name, upper(group_concat(sql)) FROM sqlite_master GROUP BY tbl_name"
        with engine.connect() as connection:
            rows = connection.execute(text(query)).tuples().all()
            found = {
                table: [*map(sql.count, words), sql.count("CREATE TRIGGER")]
                for table, sql in rows
                if table in Base.metadata.tables
            }
        engine.dispose()
        return found

    url, fresh = f"sqlite:///{tmp_path / 'old.db'}", create_engine("sqlite://")
    _first_revision(url)
    engine = create_engine(parse_url(url))
    with engine.begin() as connection:
        migrations.upgrade(connection, revision)
    Store.open(url, create=True).close()
    Base.metadata.create_all(fresh)
    assert promises(engine) == promises(fresh)


def test_numbers_are_double(postgres_url: str) -> None:
    """Nothing is rounded to the four bytes that FLOAT may mean."""
    Store.open(postgres_url, create=True).close()
    engine = create_engine(parse_url(postgres_url))
    with engine.connect() as connection:
        types = {
            f"{table}.{column['name']}": str(column["type"])
            for table in Base.metadata.tables
            for column in inspect(connection).get_columns(table)
        }
    engine.dispose()
    assert types["trials.score"] == types["measurements.value"] == "DOUBLE PRECISION"
    assert not {"REAL", "FLOAT", "NUMERIC"} & set(types.values())


def test_tasks_and_backbones_of_older_databases_are_told_apart(url: str) -> None:
    """By what the stored configurations say; the answers are those of studies stored anew."""
    engine = create_engine(parse_url(url))
    now = datetime.now(UTC)
    structure = sample_structure()
    configs = {
        "a": task_config("5e1f"),
        "b": task_config("0dd5"),
        "again": task_config("5e1f", name="moods", max_length=64),
        "folder": json.dumps(
            {"task": {"data": {"path": "./data"}, "text": ["x"]}, "data_sha256": {"x.csv": "5"}}
        ),
        "hub": json.dumps({"task": {"data": {"path": "glue", "name": "rte"}, "text": ["x"]}}),
        "early": json.dumps(
            {"task": {"data": {"path": "json", "data_files": {"train": "x"}}, "text": ["x"]}}
        ),
        "own": "{}",
    }
    with engine.begin() as connection:
        migrations.upgrade(connection, "0006")
        tables = MetaData()
        tables.reflect(connection)
        for name, rows in {
            "structures": [
                dict(hash=structure.hash, document=structure.to_json(), trainable_params=100)
            ],
            "studies": [
                dict(name=name, config=config, model="toy", task="train", metric="accuracy")
                | dict(backbone_params=10**6, created_at=now)
                for name, config in configs.items()
            ],
            "trials": [
                dict(study_id=i + 1, number=0, strategy="s3pet", seed=0, attempts=1, state="ok")
                | dict(feasible=True, recommendable=True, on_front=True, message="")
                | dict(model="toy", task="train", backbone_params=10**6, head_params=3)
                | dict(score=i / 10, structure_hash=structure.hash, trainable_params=100)
                | dict(inference_flops_ratio=1.0)
                for i in range(len(configs))
            ],
        }.items():
            connection.execute(insert(tables.tables[name]), rows)
        if connection.dialect.name == "sqlite":
            connection.execute(
                text("UPDATE trials SET history = '[NaN, 0.5, -Infinity]' WHERE study_id = 1")
            )
    with Store.open(url, create=True) as store:
        check_answers(store)
        for record in store.studies():
            spec = sample_study(record.name, config=record.config, task=record.task)
            assert record.task_fingerprint == spec.task_fingerprint
        found = [b.study for b in store.best_of_each_task(BestQuery(task="train"))]
        assert found == ["again", "b", "folder", "hub", "early", "own"]
        history = store.trials("a")[0].history
    with engine.connect() as connection:
        backbones = connection.scalars(text("SELECT DISTINCT backbone FROM studies")).all()
        assert backbones == [structure.backbone.weight_fingerprint]
        if connection.dialect.name == "sqlite":
            stored = connection.scalar(text("SELECT json_extract(history, '$[2]') FROM trials"))
            assert stored is None
            assert history[1] == 0.5 and math.isnan(history[0]) and math.isnan(history[2])
    engine.dispose()
