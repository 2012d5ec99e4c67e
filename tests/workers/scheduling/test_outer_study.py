"""The outer loop on a tiny model with real training: proposals, resume, early stop, priors of another task."""

from __future__ import annotations

import pytest

from sparsearch.errors import ConfigError, StoreError
from sparsearch.results.store.store import Store
from sparsearch.workers.callbacks import StudyCallbacks
from sparsearch.workers.study import run

RANGE = {"max_trainable_params": {"from": 200, "to": 600, "points": 2}}


@pytest.fixture
def front(study):
    outer = {"trials": 3, "tune": {"search.alpha_lr": {"from": 0.01, "to": 0.3, "log": True}}}
    return study | {"name": "front", "budgets": RANGE, "outer": outer, "baselines": ["random"]}


def trials(db, name="front"):
    with Store.open(db, create=False) as store:
        return store.trials(name)


def test_baselines_run_as_planned_and_proposals_beside_them(front, db, monkeypatch):
    record = run(front, db)
    assert (record.trials, record.finished) == (4 + 3, 4 + 3)
    planned, proposed = trials(db)[:4], trials(db)[4:]
    assert [t.strategy for t in planned] == ["s3pet", "random"] * 2
    assert all(t.settings == {} for t in planned)
    for t in proposed:
        assert t.state == "ok" and 200 <= t.budget["max_trainable_params"] <= 600
        assert 0 < t.trainable_params <= t.budget["max_trainable_params"]
        assert len(t.history) == 1 and t.history[0] == t.score
    before = trials(db)
    with monkeypatch.context() as patch:
        patch.setattr("sparsearch.workers.study.open_session", lambda c: pytest.fail("loaded"))
        run(front, db)
    more = run(front, db, ["outer.trials=4"])
    assert more.finished == 8 and trials(db)[:7] == before


def test_a_trial_that_kills_its_drivers_comes_after_all_proposals(front, db):
    class Started(StudyCallbacks):
        def __init__(self, survives):
            self.order, self.survives = [], survives

        def started(self, trial):
            self.order.append(trial.number)
            if not self.survives:
                raise KeyboardInterrupt

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            run(front, db, listener=Started(survives=False))
    listener = Started(survives=True)
    run(front, db, listener=listener)
    assert listener.order == [1, 2, 3, 4, 5, 6, 0]


def test_proposals_may_transfer_only_where_something_is_known(front, db, tmp_path):
    tune = {"search.strategy": ["random", "transfer"]}
    with pytest.raises(StoreError, match="strategy transfer: the database holds no s3pet ranking"):
        run(front | {"search": {"strategy": "random"}, "outer": {"trials": 3, "tune": tune}}, db)
    assert not (tmp_path / "study.db").exists()


def test_one_ranking_serves_proposed_budgets(front, db, monkeypatch):
    import sparsearch.workers.trials.execute as trial_module

    real, made = trial_module.rank, []
    monkeypatch.setattr(
        trial_module, "rank", lambda name, *rest: made.append(name) or real(name, *rest)
    )
    sampled = {**front["search"], "budget_schedule": "sampled"}
    run(front | {"search": sampled, "outer": {"trials": 3}, "baselines": []}, db)
    assert made == ["s3pet"], "a trial at a new budget costs its training alone"
    assert len({t.budget["max_trainable_params"] for t in trials(db)}) == 5


def test_lagging_proposals_are_cancelled_and_keep_their_last_score(front, db):
    outer = {
        "sampler": "random",
        "trials": 8,
        "tune": {"train.lr": {"from": 1e-5, "to": 1e-1, "log": True}},
        "early_stop": "asha",
    }
    longer = {**front["train"], "epochs": 4}
    run(front | {"outer": outer, "train": longer, "baselines": []}, db)
    states = [t.state for t in trials(db)]
    assert set(states) == {"ok", "cancelled"} and set(states[:2]) == {"ok"}
    for t in trials(db):
        assert len(t.history) == 4 if t.state == "ok" else 1 <= len(t.history) < 4
        assert (t.score is None) == (t.state == "cancelled")


def test_the_first_proposals_transfer_what_another_task_found(front, study, db):
    first = {**study["task"], "name": "first", "max_train_rows": 48}
    run(study | {"name": "first", "task": first, "baselines": []}, db)
    run(front, db)
    proposed = trials(db)[4:]
    assert [t.strategy for t in proposed] == ["transfer", "transfer", "s3pet"]
    assert [t.budget["max_trainable_params"] for t in proposed[:2]] == [200, 600]
    assert {t.state for t in proposed} == {"ok"}


def test_priors_found_later_change_no_study_that_has_begun(front, study, db):
    class Once(StudyCallbacks):
        def finished(self, trial, outcome):
            if trial.number == 4:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(front, db, listener=Once())
    first = {**study["task"], "name": "first", "max_train_rows": 48}
    run(study | {"name": "first", "task": first, "baselines": []}, db)
    run(front, db)
    assert "transfer" not in {t.strategy for t in trials(db)}


def test_what_is_wrong_with_an_outer_loop_is_said_together(front, db):
    wrong = {
        "tune": {
            "search.alpha_lrr": {"from": 0.1, "to": 0.2},
            "train.epochs": {"from": 0, "to": 3},
            "search.strategy": ["s3pet", "full"],
        }
    }
    with pytest.raises(ConfigError) as caught:
        run(front | {"outer": wrong}, db)
    for part in ("search.alpha_lrr", "train.epochs", "head and full have no budget"):
        assert part in str(caught.value)
    backwards = {"max_trainable_params": {"from": 600, "to": 200}}
    with pytest.raises(ConfigError, match="or a range of either"):
        run(front | {"budgets": backwards}, db)
    with pytest.raises(ConfigError, match="from must be below to"):
        run(front | {"outer": {"tune": {"search.steps": {"from": 9, "to": 3}}}}, db)
    with pytest.raises(ConfigError, match="must all set the same limits"):
        run(front | {"budgets": [{"max_trainable_params": 200}, {"max_bytes": 900}]}, db)
