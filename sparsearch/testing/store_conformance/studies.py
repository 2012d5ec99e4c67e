"""Studies and how they grow."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from sparsearch.errors import LeaseError, NotFoundError, StoreError
from sparsearch.results.records import (
    StudySpec,
    Trial,
)
from sparsearch.results.store.store import Store
from sparsearch.spaces.budget import Budget
from sparsearch.spaces.ranking import Ranking
from sparsearch.testing.store_conformance.samples import (
    sample_outcome,
    sample_study,
)

__all__ = ["StudiesConformance"]


class StudiesConformance:
    """Studies and how they grow."""

    def test_new_study_is_queued_in_order(self, store: Store) -> None:
        """Trials come back as they went in, also one without a budget."""
        spec = sample_study(trials=3)
        spec = replace(spec, trials=(*reversed(spec.trials), Trial(3, "full", None, 2**62)))
        store.begin_study(spec)
        assert store.queued("study") == tuple(sorted(spec.trials, key=lambda t: t.number))
        record = store.find_study("study")
        assert (record.trials, record.finished, record.best_score) == (4, 0, None)
        assert record.owner is None
        assert record.created_at.tzinfo is not None

    def test_a_trial_may_be_added_with_settings_of_its_own(self, store: Store) -> None:
        """It is queued after the others, once, and keeps its settings in order."""
        store.begin_study(sample_study())
        settings = (("train.lr", 0.01), ("search.steps", 7), ("search.start", "probe"))
        added = Trial(2, "probe", Budget(max_trainable_params=64, text="64 params"), 5, settings)
        store.add_trial("study", added)
        assert store.queued("study")[2] == added
        with pytest.raises(StoreError):
            store.add_trial("study", added)
        with pytest.raises(StoreError, match="no study 'other'"):
            store.add_trial("other", added)
        store.finish("study", 2, replace(sample_outcome(), history=(0.25, 0.5)))
        record = store.trials("study")[2]
        assert (record.settings, record.history) == (dict(settings), (0.25, 0.5))

    def test_study_without_trials(self, store: Store) -> None:
        """It is listed, and its best is None."""
        store.begin_study(sample_study(trials=0))
        assert [(s.trials, s.finished) for s in store.studies()] == [(0, 0)]
        assert store.best(study="study") is None
        assert store.pareto("study") == ()

    def test_deleting_leaves_nothing_behind_and_takes_nothing_from_others(
        self, store: Store
    ) -> None:
        """Structures, weights and rankings that another study has too stay; a study that runs is refused."""
        ranking = Ranking((0.5,), "s3pet", 0, 3, 1.0, "f00d", "5ace", "train")
        shared, own = sample_outcome(0.9, 100), sample_outcome(0.8, 50)
        for name in ("study", "other"):
            store.begin_study(sample_study(name))
        store.finish("study", 0, replace(shared, ranking=("shared", ranking), weights=b"mine"))
        store.finish("study", 1, replace(own, ranking=("own", ranking)))
        store.finish("other", 0, replace(shared, ranking=("shared", ranking), weights=b"theirs"))
        store.acquire("study")
        with pytest.raises(LeaseError, match="is being run by"):
            store.delete_study("study")
        store.release("study")
        with pytest.raises(NotFoundError, match="no study 'stud'"):
            store.delete_study("stud")
        store.delete_study("study")
        assert [s.name for s in store.studies()] == ["other"]
        assert store.ranking("own") is None and store.ranking("shared") == ranking
        assert store.weights("other", 0) == b"theirs"
        assert shared.structure is not None and own.structure is not None
        assert store.find_structure(shared.structure.hash).study == "other"
        with pytest.raises(NotFoundError):
            store.load_structure(own.structure.hash)
        store.begin_study(sample_study("study"))
        assert [t.state for t in store.trials("study")] == ["queued", "queued"]

    def test_deleting_leaves_a_ranking_that_a_trial_of_another_study_will_take_over(
        self, store: Store
    ) -> None:
        """The trial has not run, so that only its settings name it."""
        ranking = Ranking((0.5,), "s3pet", 0, 3, 1.0, "f00d", "5ace", "train")
        for name in ("study", "other"):
            store.begin_study(sample_study(name))
        store.finish("study", 0, replace(sample_outcome(0.9), ranking=("taken", ranking)))
        settings = (("search.transfer_from", "taken"),)
        store.acquire("other")
        store.add_trial(
            "other", Trial(2, "transfer", Budget(max_trainable_params=100), 0, settings)
        )
        store.release("other")
        store.delete_study("study")
        assert store.ranking("taken") == ranking

    def test_equal_config_continues(self, store: Store) -> None:
        """The order of keys and white space do not matter, and no trial is added."""
        store.begin_study(sample_study(config='{"a": 1, "b": [1, 2]}'))
        store.finish("study", 0, sample_outcome())
        store.begin_study(sample_study(config='{"b":[1,2],"a":1}'))
        assert [t.state for t in store.trials("study")] == ["ok", "queued"]

    def test_other_config_is_refused_with_the_differences(self, store: Store) -> None:
        """Dotted paths, old and new value, five at most."""
        old = {"search": {"steps": 300, "lr": 0.1}, "seeds": [0, 1], "gone": True}
        new = {"search": {"steps": 400, "lr": 0.1}, "seeds": [0, 2, 3], "new": {"a": 1}}
        store.begin_study(sample_study(config=json.dumps(old)))
        with pytest.raises(StoreError) as caught:
            store.begin_study(sample_study(config=json.dumps(new)))
        for part in (
            "search.steps: 300 -> 400",
            "gone: true -> (not set)",
            'new: (not set) -> {"a": 1}',
        ):
            assert part in caught.value.message
        assert "lr" not in caught.value.message
        assert "seeds" not in caught.value.message, "which may differ"
        assert "another name" in caught.value.hint
        many = json.dumps({f"k{i}": i for i in range(7)} | old)
        with pytest.raises(StoreError, match="and 2 more"):
            store.begin_study(sample_study(config=many))

    def test_a_study_grows_by_the_trials_that_it_lacks(self, store: Store) -> None:
        """They are numbered after the others, which stay; its config then lists all that it was asked for."""
        one, more = sample_study(trials=2), sample_study(trials=4, config='{"seeds": [0, 1]}')
        store.begin_study(one)
        store.finish("study", 0, sample_outcome())
        store.begin_study(more)
        assert [t.state for t in store.trials("study")] == ["ok", "queued", "queued", "queued"]
        before = store.trials("study")
        for asked in (more, one, replace(more, trials=more.trials[::-1])):
            store.begin_study(asked)
            assert store.trials("study") == before
        with pytest.raises(StoreError, match="another config: name"):
            store.begin_study(replace(more, config='{"seeds": [0, 1], "name": 2}'))
        budget, wording = (
            Budget(max_trainable_params=200),
            Budget(max_trainable_params=100, text="100 params"),
        )
        asked_for = (("s3pet", wording, 10), ("s3pet", budget, 10), ("probe", wording, 7))
        trials = tuple(Trial(number, *trial) for number, trial in enumerate(asked_for))
        store.begin_study(replace(one, config='{"seeds": [7]}', trials=trials))
        assert store.trials("study")[:4] == before
        assert store.queued("study")[3:] == (
            replace(trials[1], number=4),
            replace(trials[2], number=5),
        )
        assert json.loads(store.find_study("study").config) == {"seeds": [0, 1, 7]}

    def test_a_study_with_an_outer_loop_keeps_its_plan(self, store: Store) -> None:
        """Its proposals are numbered after the planned trials, and lie between the budgets."""
        spec = sample_study(config='{"outer": {}, "seeds": [0]}')
        store.begin_study(spec)
        for config in ('{"outer": {}, "seeds": [0, 1]}', '{"outer": {}}', '{"seeds": [0]}'):
            with pytest.raises(StoreError, match="another config"):
                store.begin_study(replace(sample_study(trials=4), config=config))
        assert store.queued("study") == spec.trials

    def test_budgets_that_change_what_searches_were_made_for_are_refused(
        self, store: Store
    ) -> None:
        """A search that draws budgets serves their range; it may change until the first such trial begins."""

        def asking(*budgets: int, every: bool = False) -> StudySpec:
            search = {"budget_schedule": "sampled"} | ({"early_stop": True} if every else {})
            listed = [{"max_trainable_params": b} for b in budgets]
            config = json.dumps({"search": search, "budgets": listed})
            limits = [Budget(max_trainable_params=b) for b in budgets]
            trials = tuple(Trial(n, "s3pet", limit, 0) for n, limit in enumerate(limits))
            return replace(
                sample_study("every" if every else "ends", config=config), trials=trials
            )

        store.begin_study(asking(100, 200))
        store.begin_study(asking(100, 400))
        store.start("ends", 0)
        store.begin_study(asking(300))
        before = store.trials("ends")
        with pytest.raises(
            StoreError, match="rankings for the range .* 100 to 400; .* 100 to 500"
        ):
            store.begin_study(asking(500))
        assert store.trials("ends") == before
        assert [t.budget["max_trainable_params"] for t in before if t.budget] == [
            100,
            200,
            400,
            300,
        ]
        store.begin_study(asking(100, 400, every=True))
        store.start("every", 1)
        store.begin_study(asking(400, every=True))
        with pytest.raises(StoreError, match="for each of its budgets"):
            store.begin_study(asking(300, every=True))

    def test_unknown_names_list_what_there_is(self, store: Store) -> None:
        """For studies and trials, reading and writing."""
        store.begin_study(sample_study("trec-minilm", 1))
        for ask in (store.find_study, store.queued, store.acquire, store.pareto, store.trials):
            with pytest.raises(StoreError, match="there are: trec-minilm"):
                ask("sst2")
        for use in (store.start, store.weights):
            with pytest.raises(StoreError, match="there are: trec-minilm"):
                use("sst2", 0)
            with pytest.raises(StoreError, match="no trial 1"):
                use("trec-minilm", 1)

    def test_prefixes(self, store: Store) -> None:
        """An exact name wins; otherwise the prefix has to be unique."""
        for name in ("run", "run-2", "run-3", "other"):
            store.begin_study(sample_study(name, 1))
        assert store.find_study("run").name == "run"
        assert store.find_study("o").name == "other"
        assert [t.study for t in store.trials("oth")] == ["other"]
        with pytest.raises(StoreError, match="run-2, run-3"):
            store.find_study("run-")
        with pytest.raises(StoreError, match="no study"):
            store.find_study("")
