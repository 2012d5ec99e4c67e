"""The strategy `transfer`: a ranking of another task, found in the database, cut and trained on this one."""

from __future__ import annotations

import pytest

import sparsearch.workers.trials.execute as trial_module
from sparsearch.errors import StoreError
from sparsearch.results.store.store import Store
from sparsearch.workers.study import run


@pytest.fixture
def moods(study):
    return study | {"name": "moods", "task": {**study["task"], "name": "first"}, "baselines": []}


@pytest.fixture
def other(study):
    """Fewer of the same rows, under another name: another task."""
    task = {**study["task"], "name": "other", "max_train_rows": 48}
    return study | {"name": "other", "task": task, "baselines": ["transfer"]}


def trials(db, name):
    with Store.open(db, create=False) as store:
        return store.trials(name)


def test_the_best_ranking_of_another_task_is_cut_at_each_budget(moods, other, db, monkeypatch):
    run(moods, db)
    real = trial_module.rank
    searched = []
    monkeypatch.setattr(
        trial_module, "rank", lambda name, *rest: searched.append(name) or real(name, *rest)
    )
    run(other, db)
    small = next(t for t in trials(db, "moods") if t.budget["max_trainable_params"] == 200)
    found = [t for t in trials(db, "other") if t.strategy == "transfer"]
    assert searched == ["s3pet", "s3pet"], "a transferred ranking is not made again"
    assert [t.state for t in found] == ["ok", "ok"]
    assert found[0].structure == small.structure, "the only one within the small budget"
    with Store.open(db, create=False) as store:
        for t in found:
            assert store.ranking(t.settings["search.transfer_from"]).task == "first"


def test_a_study_may_be_named_even_of_the_same_task(moods, other, db):
    run(moods, db)
    run(other | {"baselines": []}, db)
    again = moods | {"name": "again", "search": {**moods["search"], "transfer_from": "other"}}
    run(again | {"baselines": ["transfer"]}, db)
    assert all(t.state == "ok" for t in trials(db, "again"))


def test_without_a_ranking_nothing_is_written(moods, other, db, tmp_path):
    with pytest.raises(StoreError, match="no s3pet ranking of this backbone and space") as caught:
        run(other, db)
    assert "run a study of another task" in caught.value.hint
    assert not (tmp_path / "study.db").exists()
    run(moods, db)
    same_task = moods | {"name": "again", "baselines": ["transfer"]}
    with pytest.raises(StoreError, match="made for another task"):
        run(same_task, db)
    another_space = other | {"space": {"kinds": {"lora": {"max_rank": 1}}}}
    with pytest.raises(StoreError, match="no s3pet ranking"):
        run(another_space, db)
    with Store.open(db, create=False) as store:
        assert [s.name for s in store.studies()] == ["moods"]
