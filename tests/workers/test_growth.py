"""A stored study and other seeds, budgets or baselines: what has run counts, what is missing is added."""

from __future__ import annotations

import json

import pytest
import yaml
from typer.testing import CliRunner

import sparsearch.workers.trials.execute as trial_module
from sparsearch.cli.main import app
from sparsearch.errors import LeaseError, StoreError
from sparsearch.results.store.store import Store
from sparsearch.results.store.writing.lease import Owner
from sparsearch.workers.callbacks import StudyCallbacks
from sparsearch.workers.study import run
from tests.helpers.study_records import records


@pytest.fixture
def study(study):
    cheap = {"max_trainable_params": [200]}
    cheap = {"budgets": cheap, "race": False}
    return study | {"baselines": ["random"], "search": {"strategy": "probe"}, **cheap}


def asked(db):
    return {
        (t.strategy, t.budget and t.budget["max_trainable_params"], t.seed) for t in records(db)
    }


def config_of(db):
    with Store.open(db, create=False) as store:
        return json.loads(store.find_study("tiny").config)


FURTHER = {
    "seeds": "seeds=[0,1]",
    "budgets": "budgets=[600,200]",
    "baselines": "baselines=[lora-qv,random,head]",
}


@pytest.mark.parametrize("name", FURTHER)
def test_a_study_grows_by_further_seeds_budgets_and_baselines(study, db, name):
    run(study, db)
    before = records(db)
    record = run(study, db, [FURTHER[name]])
    after = records(db)
    assert after[:2] == before, "what has run counts, under its number"
    assert [t.number for t in after] == list(range(len(after)))
    assert record.trials == record.finished == len(after) == 4
    assert len(asked(db)) == 4


def test_the_order_of_growth_changes_no_set_of_trials(study, tmp_path):
    found = []
    for number, order in enumerate((list(FURTHER.values()), list(FURTHER.values())[::-1])):
        db = f"sqlite:///{tmp_path / f'{number}.db'}"
        run(study, db)
        for i in range(3):
            run(study, db, order[: i + 1])
        assert {t.state for t in records(db)} == {"ok"}
        assert len(records(db)) == len(asked(db)) == 2 * (1 + 2 * 3)
        found.append((asked(db), {k: sorted(map(str, config_of(db)[k])) for k in FURTHER}))
    at_once = f"sqlite:///{tmp_path / 'once.db'}"
    run(study, at_once, list(FURTHER.values()))
    assert all(each == found[0] for each in found) and found[0][0] == asked(at_once)


def test_growth_that_crosses_what_is_stored_adds_what_is_asked_for_alone(study, db):
    run(study, db)
    run(study, db, ["seeds=[1]"])
    run(study, db, ["budgets=[600]"])
    assert asked(db) == {
        (s, b, n) for s in ("probe", "random") for b, n in ((200, 0), (200, 1), (600, 0))
    }
    listed = config_of(db)
    assert listed["seeds"] == [0, 1]
    assert [b["max_trainable_params"] for b in listed["budgets"]] == [200, 600]


def test_a_study_that_has_all_that_is_asked_for_says_so_and_what_more_it_has(study, db, tmp_path):
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(study))
    call = ["run", str(path), "--db", db]
    assert CliRunner().invoke(app, call).exit_code == 0
    assert CliRunner().invoke(app, [*call, "--set", "seeds=[0,1]"]).exit_code == 0
    before = records(db)
    result = CliRunner().invoke(app, call, env={"COLUMNS": "200"})
    assert result.exit_code == 0
    assert "study tiny is finished already (2 trials): nothing to run" in result.stderr
    assert (
        "it also has 2 trials that this does not ask for: probe random, at 200 params, under seed 1"
        in result.stderr
    )
    assert "over 2 seeds" in result.stdout, "the summary is of all"
    assert records(db) == before


def test_trials_that_another_command_asks_for_wait_for_it(study, db):
    class Ends(StudyCallbacks):
        def started(self, trial):
            if trial.seed == 1:
                raise KeyboardInterrupt

        def also_stored(self, study, trials):
            self.others = [(t.seed, t.state) for t in trials]

    with pytest.raises(KeyboardInterrupt):
        run(study, db, ["seeds=[0,1]"], listener=Ends())
    listener = Ends()
    assert run(study, db, listener=listener).finished == 2
    assert listener.others == [(1, "queued")] * 2
    assert run(study, db, ["seeds=[0,1]"]).finished == 4


def test_a_study_that_another_driver_holds_does_not_grow(study, db):
    run(study, db)
    before = records(db), config_of(db)
    with Store.open(db, create=True, owner=Owner("elsewhere", 7, 0.0)) as store:
        store.acquire("tiny")
    with pytest.raises(LeaseError, match="elsewhere:7"):
        run(study, db, ["seeds=[0,1]"])
    assert (records(db), config_of(db)) == before


def test_what_would_change_trials_that_have_run_is_refused_by_name(study, db):
    run(study, db)
    before = records(db)
    with pytest.raises(StoreError, match=r"another config: train.epochs: 1 -> 2\n"):
        run(study, db, ["seeds=[0,1]", "train.epochs=2"])
    assert records(db) == before


def test_a_transfer_that_is_added_knows_what_it_takes(study, db):
    other = {**study["task"], "name": "other", "max_train_rows": 48}
    searched = {"search": {"steps": 3, "batch_size": 8}, "baselines": []}
    run(study | searched | {"name": "first", "task": other}, db)
    run(study, db)
    run(study, db, ["baselines=[random,transfer]", "seeds=[0,1]"])
    transferred = [t for t in records(db) if t.strategy == "transfer"]
    assert [(t.seed, t.state) for t in transferred] == [(0, "ok"), (1, "ok")]
    assert all(t.settings["search.transfer_from"] for t in transferred)


def test_a_transfer_without_a_source_is_not_added(study, db):
    run(study, db)
    before = records(db), config_of(db)
    with pytest.raises(StoreError, match="strategy transfer: the database holds no s3pet ranking"):
        run(study, db, ["baselines=[random,transfer]"])
    assert (records(db), config_of(db)) == before


def test_a_ranking_serves_no_limit_that_its_search_did_not_weigh(study, db):
    """Masks and heads of a search without such a limit have equal scores: it would take the first ones."""
    searched = {"search": {"steps": 3, "batch_size": 8}, "baselines": []}
    space = {"kinds": {"lora": {"max_rank": 1}, "weight_mask": {"rank": 1}}}
    study = study | searched | {"space": space}
    other = {**study["task"], "name": "other", "max_train_rows": 48}
    run(study | {"name": "first", "task": other}, db)
    sparse = {"max_trainable_params": [4000], "min_weight_sparsity": ["40%"]}
    study |= {"budgets": sparse}
    (record,) = records(db, "first")
    for source in (
        [],
        ["search.transfer_from=first"],
        [f"search.transfer_from={record.ranking_key}"],
    ):
        with pytest.raises(StoreError, match="and searched under min_weight_sparsity"):
            run(study, db, ["search.strategy=transfer", *source])
    run(study | {"name": "second", "task": other}, db)
    run(study, db, ["search.strategy=transfer"])
    (found,) = records(db)
    assert found.settings["search.transfer_from"] == records(db, "second")[0].ranking_key


def test_one_limit_written_twice_is_one_budget(study, db):
    run(study, db, [f"budgets={json.dumps(['3%', '3.0%', ' 3 %', 600])}"])
    (first, *_), limits = records(db), {t.budget["max_trainable_params"] for t in records(db)}
    number = first.budget["max_trainable_params"]
    assert limits == {number, 600} and len(records(db)) == 2 * 2
    before = records(db)
    for again in (["3.0%"], [number], [{"max_trainable_params": number}, "3%", 600]):
        run(study, db, [f"budgets={json.dumps(again)}"])
        assert records(db) == before, "nor is it a further one"


def test_a_range_too_narrow_for_its_points_has_each_budget_once(study, db):
    run(study, db, ["budgets={max_trainable_params: {from: '2%', to: '2.01%', points: 9}}"])
    assert len(records(db)) == len(asked(db)) < 2 * 9


@pytest.fixture
def sampled(study):
    search = {"steps": 3, "batch_size": 8, "budget_schedule": "sampled"}
    return study | {"search": search, "baselines": [], "budgets": [200, 600]}


def test_budgets_within_the_range_of_a_sampled_search_reuse_its_ranking(sampled, db, monkeypatch):
    real, made = trial_module.rank, []
    monkeypatch.setattr(
        trial_module, "rank", lambda name, *rest: made.append(name) or real(name, *rest)
    )
    run(sampled, db)
    run(sampled, db, ["budgets=[400]"])
    assert made == ["s3pet"] and len({t.ranking_key for t in records(db)}) == 1
    run(sampled, db, ["budgets=[400]", "seeds=[1]"])
    run(sampled, db, ["seeds=[0,1]"])
    assert made == ["s3pet"] * 2, "one per seed, whichever budgets it was first asked for"


def test_budgets_beyond_the_range_of_a_sampled_search_are_refused(sampled, db):
    run(sampled, db)
    before = records(db), config_of(db)
    message = "range of its budgets, max_trainable_params 200 to 600; .* 200 to 900"
    with pytest.raises(StoreError, match=message):
        run(sampled, db, ["budgets=[200,600,900]"])
    assert (records(db), config_of(db)) == before
