"""Backups: all of a database, from and to either kind, while a study runs; and what a check finds."""

from __future__ import annotations

import shutil
import sqlite3
from dataclasses import replace

import pytest

from sparsearch.errors import MissingStoreError, StoreError
from sparsearch.results import Store
from sparsearch.results.store.copying import check_database, copy_database
from sparsearch.spaces.ranking import Ranking
from sparsearch.testing.store_conformance import sample_outcome, sample_study
from tests.helpers.command_line import call
from tests.helpers.filled_study import fill, plan

RANKING = Ranking((0.5,), "s3pet", 0, 3, 1.0, "f00d", "5ace", "train")


@pytest.fixture
def source(tmp_path):
    """A database with a finished study and one that runs."""
    url = f"sqlite:///{tmp_path / 'source.db'}"
    fill(url, "filled", plan())
    with Store.open(url, create=True) as store:
        store.begin_study(sample_study("running"))
        store.acquire("running")
        store.start("running", 0)
        store.finish("running", 0, replace(sample_outcome(), ranking=("key", RANKING)))
        store.start("running", 1)
    return url


@pytest.fixture(params=["sqlite", "postgresql"])
def target(request, tmp_path):
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'target.db'}"
    return request.getfixturevalue("postgres_url")


def content(url):
    with Store.open(url, create=False) as store:
        studies = store.studies()
        names = [s.name for s in studies]
        return (
            [replace(s, owner=None) for s in studies],
            [store.trials(name) for name in names],
            [store.attempts(name) for name in names],
            [store.pareto(name) for name in names],
            [store.weights("filled", number) for number in range(12)],
            store.ranking("key"),
        )


def test_a_copy_has_everything_and_goes_both_ways(source, target, tmp_path):
    rows = {}
    assert copy_database(source, target, rows.__setitem__) == 2
    assert content(target) == content(source)
    assert rows["trials"] == 14
    back = str(tmp_path / "back.db")
    assert copy_database(target, back) == 2
    assert content(back) == content(source)
    assert check_database(target)[1] == [] == check_database(back)[1]
    with Store.open(target, create=True) as store:
        assert store.find_study("running").owner is None, "nobody holds a copy"
        store.acquire("running")
        assert [t.number for t in store.queued("running")] == [1]
        store.release("running")
        store.begin_study(sample_study("new"))
        assert [s.name for s in store.studies()] == ["filled", "running", "new"]


def test_a_database_with_studies_is_not_written_over(source, target):
    with Store.open(target, create=True) as store:
        store.begin_study(sample_study("mine"))
    with pytest.raises(StoreError, match="has studies already"):
        copy_database(source, target)
    with Store.open(target, create=False) as store:
        assert [s.name for s in store.studies()] == ["mine"]


def test_what_fails_leaves_no_file(source, tmp_path):
    def fail(table, rows):
        raise RuntimeError("the disk is full")

    with pytest.raises(RuntimeError):
        copy_database(source, str(tmp_path / "half.db"), fail)
    with pytest.raises(MissingStoreError):
        copy_database(str(tmp_path / "none.db"), str(tmp_path / "out.db"))
    assert sorted(
        p.name for p in tmp_path.glob("*.db*") if not p.name.startswith("source.db-")
    ) == ["source.db"]


def test_a_check_finds_what_is_wrong(source, tmp_path):
    path = tmp_path / "source.db"
    count, problems = check_database(source)
    assert count > 1 and problems == []
    damaged = tmp_path / "damaged.db"
    shutil.copy(path, damaged)
    with sqlite3.connect(damaged) as connection:
        names = connection.execute("SELECT hash FROM structures ORDER BY hash").fetchall()
        (first,), (second,), (third,) = names[:3]
        sql = "UPDATE structures SET document = (SELECT document FROM structures WHERE hash = ?) WHERE hash = ?"
        connection.execute(sql, (second, first))
        connection.execute("UPDATE structures SET document = '{}' WHERE hash = ?", (third,))
        connection.execute("UPDATE weights SET trial_id = trial_id + 1000 WHERE trial_id = 3")
    _, problems = check_database(str(damaged))
    told = "\n".join(problems)
    assert f"structure {first[:12]} has the content of {second[:12]}" in told
    assert f"structure {third[:12]} cannot be read" in told
    assert "weights: row" in told and "refers to nothing in trials" in told


def test_the_commands(source, tmp_path):
    out = str(tmp_path / "backup.db")
    done = call("db", "backup", out, "--db", source)
    assert done.code == 0 and f"2 studies are copied to {out}" in done.out.replace("\n", " ")
    restored = f"sqlite:///{tmp_path / 'restored.db'}"
    assert call("db", "restore", out, "--db", restored).code == 0
    assert content(restored) == content(source)
    assert "nothing is wrong" in call("db", "check", "--db", restored).out
    assert call("db", "upgrade", "--db", restored).code == 0
    again = call("db", "restore", out, "--db", restored)
    assert again.code == 1 and "has studies already" in again.err
    with sqlite3.connect(tmp_path / "restored.db") as connection:
        connection.execute("UPDATE structures SET document = '{}'")
    wrong = call("db", "check", "--db", restored)
    assert wrong.code == 1 and "cannot be read" in wrong.err
