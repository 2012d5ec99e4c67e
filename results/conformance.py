"""What every backend of the store must do; a backend's tests subclass ``StoreConformance``.

Needs pytest, which only the development extra installs.
"""

from __future__ import annotations

import json
import math
import random
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import text

from sparsearch.errors import ConfigError, LeaseError, StoreError
from sparsearch.results.lease import Owner
from sparsearch.results.oracle import check_answers
from sparsearch.results.store import Store
from sparsearch.results.values import (
    SPARSITY,
    BestQuery,
    Environment,
    FinishedState,
    Measurement,
    Outcome,
    StudySpec,
    Trial,
)
from sparsearch.spaces.backbone import BackboneId
from sparsearch.spaces.budget import Budget
from sparsearch.spaces.kinds import make_kind
from sparsearch.spaces.ranking import Ranking
from sparsearch.spaces.space import Candidate
from sparsearch.spaces.structure import Provenance, Structure

__all__ = ["StoreConformance", "sample_outcome", "sample_structure", "sample_study", "task_config"]

_BACKBONE_PARAMS = 1_000_000


def sample_structure(params: int = 100, layer: int = 0) -> Structure:
    """A structure of one candidate; another size or layer makes another hash."""
    backbone = BackboneId("toy", None, "bert", "c0ffee", "f00d", _BACKBONE_PARAMS)
    candidate = Candidate(f"layers.{layer}.attn.q", "lora", params, params, 2 * params, 0)
    kinds = (make_kind("lora", {}),)
    return Structure(backbone, "classification", (candidate,), kinds, Provenance("elsewhere"))


def sample_study(
    name: str = "study",
    trials: int = 2,
    *,
    config: str = "{}",
    model: str = "toy",
    task: str = "trec",
    backbone_params: int = _BACKBONE_PARAMS,
) -> StudySpec:
    """A study of s3pet trials whose seeds are 10, 11, ..."""
    budget = Budget(max_trainable_params=100, text="0.01%")
    listed = tuple(Trial(n, "s3pet", budget, 10 + n) for n in range(trials))
    return StudySpec(name, config, model, task, "accuracy", backbone_params, listed)


def task_config(train: str, **changed: Any) -> str:
    """The configuration of a study whose training file has that digest, some settings of the task changed."""
    data = {"path": "json", "data_files": {"train": "train.jsonl"}}
    task = {"data": data, "text": ["text"]} | changed
    return json.dumps({"task": task, "data_sha256": {"train": train}})


def sample_outcome(
    score: float = 0.5,
    params: int = 100,
    *,
    ratio: float = 1.0,
    sparsity: float = 0.0,
    layer: int = 0,
    state: FinishedState = "ok",
    structure: bool = True,
) -> Outcome:
    """An outcome with a validation score and a test score 0.1 below it."""
    return Outcome(
        state,
        measurements=(
            Measurement("accuracy", "validation", score),
            Measurement("loss", "validation", 9.0),
            Measurement("accuracy", "test", score - 0.1),
            *([Measurement(SPARSITY, "test", sparsity)] if sparsity else []),
        ),
        structure=sample_structure(params, layer) if structure else None,
        trainable_params=params,
        head_params=7,
        inference_flops_ratio=ratio,
        seconds=1.5,
        peak_bytes=2**33,
    )


def _dead_process() -> Owner:
    """A process of this machine that has ended."""
    me = Owner.current()
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        pass
    return Owner(me.host, process.pid, me.started)


def _at_once(do: Callable[[int], None], count: int) -> None:
    """Call it with 0, 1, ... in as many threads, which start together."""
    barrier = threading.Barrier(count)

    def wait_and_do(number: int) -> None:
        barrier.wait()
        do(number)

    with ThreadPoolExecutor(count) as pool:
        for done in [pool.submit(wait_and_do, number) for number in range(count)]:
            done.result()


class StoreConformance:
    """Tests of the contract in ``Store``'s docstring.

    A subclass gives a fixture ``store_url``: the URL of a database that does not exist yet, or is
    empty, anew for each test.
    """

    ELSEWHERE = Owner("another-machine", 4711, 1.0)

    @pytest.fixture
    def store(self, store_url: str) -> Iterator[Store]:
        """A store that writes."""
        with Store.open(store_url, create=True) as store:
            yield store

    @pytest.fixture
    def other(self, store: Store, store_url: str) -> Iterator[Store]:
        """The same database, opened by a driver on another machine."""
        with Store.open(store_url, create=True, owner=self.ELSEWHERE) as other:
            yield other

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

    def test_a_ranking_is_transferred_to_another_task(self, store: Store) -> None:
        """The best one of the same space and backbone, within the limit first."""
        spec = sample_study(trials=4)
        store.begin_study(spec)
        for n, (score, params) in enumerate(((0.7, 90), (0.9, 200), (0.8, 80), (0.6, 50))):
            made = Ranking((0.5, 0.25), "s3pet", n, 3, 1.0, "f00d", "5ace", "trec")
            outcome = replace(sample_outcome(score, params, layer=n), ranking=(f"key{n}", made))
            store.finish("study", n, outcome)
        assert store.ranking("key1") == replace(made, seed=1)
        assert store.transferable("5ace", "sst2") == "key1"
        assert store.transferable("5ace", "sst2", max_trainable_params=100) == "key2"
        assert store.transferable("5ace", "sst2", backbone="f00d") == "key1"
        own = spec.task_fingerprint
        assert store.transferable("5ace", own) is None, "it is that task's own"
        assert store.transferable("5ace", own, study="stu") == "key1", "unless it is named"
        assert store.transferable("else", "sst2") is None
        assert store.transferable("5ace", "sst2", backbone="else") is None
        with pytest.raises(StoreError, match="no study 'other'"):
            store.transferable("5ace", "sst2", study="other")

    def test_study_without_trials(self, store: Store) -> None:
        """It is listed, and its best is None."""
        store.begin_study(sample_study(trials=0))
        assert [(s.trials, s.finished) for s in store.studies()] == [(0, 0)]
        assert store.best(study="study") is None
        assert store.pareto("study") == ()

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
        budget, wording = Budget(max_trainable_params=200), Budget(100, text="100 params")
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
            trials = tuple(Trial(n, "s3pet", Budget(b), 0) for n, b in enumerate(budgets))
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

    def test_life_of_a_trial(self, store: Store) -> None:
        """Everything of an outcome comes back; the scores are those of the study's metric."""
        store.begin_study(sample_study())
        store.start("study", 1)
        assert [(t.state, t.attempts) for t in store.trials("study")] == [
            ("queued", 0),
            ("running", 1),
        ]
        environment = Environment("abc", {"torch": "2"}, "cpu")
        outcome = replace(sample_outcome(0.75), weights=b"\0tensors", environment=environment)
        store.finish("study", 1, outcome)
        trial = store.trials("study")[1]
        assert (trial.state, trial.score, trial.test_score) == ("ok", 0.75, 0.65)
        assert trial.structure == sample_structure().hash
        assert (trial.trainable_params, trial.head_params, trial.peak_bytes) == (100, 7, 2**33)
        assert trial.budget == {"max_trainable_params": 100, "text": "0.01%"}
        assert store.weights("study", 1) == b"\0tensors"
        assert store.weights("study", 0) is None
        assert [t.number for t in store.queued("study")] == [0]

    def test_finished_is_never_overwritten(self, store: Store) -> None:
        """Neither by another outcome nor by another start."""
        store.begin_study(sample_study())
        store.finish("study", 0, sample_outcome(state="oom"))
        before = store.trials("study")
        with pytest.raises(StoreError, match="finished already"):
            store.finish("study", 0, sample_outcome())
        with pytest.raises(StoreError, match="finished already"):
            store.start("study", 0)
        assert store.trials("study") == before

    def test_outcome_is_stored_whole_or_not_at_all(self, store: Store) -> None:
        """An insert that fails late leaves the trial running and nothing else behind."""
        store.begin_study(sample_study())
        store.start("study", 0)
        good = sample_outcome()
        key = ("key", Ranking((0.1,), "s3pet", 0))
        twice = replace(good, measurements=good.measurements * 2, ranking=key)
        with pytest.raises(StoreError):
            store.finish("study", 0, twice)
        assert [t.state for t in store.trials("study")] == ["running", "queued"]
        assert store.ranking("key") is None
        with pytest.raises(StoreError):
            store.find_structure(sample_structure().hash)
        store.finish("study", 0, good)
        assert store.find_structure(sample_structure().hash).trial == 0

    @pytest.mark.parametrize("score", [float("nan"), float("inf")])
    def test_undefined_metric_is_no_score(self, store: Store, score: float) -> None:
        """It is never the best, and does not stop the study."""
        store.begin_study(sample_study())
        store.finish("study", 0, sample_outcome(score))
        assert store.best() is None
        store.finish("study", 1, sample_outcome(0.1))
        assert [t.score for t in store.trials("study")] == [None, 0.1]
        best = store.best()
        assert best is not None and best.trial == 1

    def test_ranking_is_kept_once_and_exactly(self, store: Store) -> None:
        """The first one under a key stays; scores keep every bit."""
        store.begin_study(sample_study())
        first = Ranking((0.1, -1 / 3, 1e-300), "s3pet", 3, steps=300, seconds=12.5)
        for number, ranking in enumerate((first, Ranking((1.0,), "probe", 0))):
            store.finish("study", number, replace(sample_outcome(), ranking=("key", ranking)))
        assert store.ranking("key") == first
        assert store.ranking("other") is None

    def test_trials_remember_their_ranking(self, store: Store) -> None:
        """Also one that was there already; references have none."""
        store.begin_study(sample_study(trials=3))
        keyed = replace(sample_outcome(), ranking=("key", Ranking((0.5,), "s3pet", 0)))
        for number, outcome in enumerate((keyed, keyed, sample_outcome(structure=False))):
            store.finish("study", number, outcome)
        assert [t.ranking_key for t in store.trials("study")] == ["key", "key", None]

    def test_any_message_is_stored(self, store: Store) -> None:
        """A library's error may hold bytes that no database does."""
        store.begin_study(sample_study())
        failure = Outcome("failed", "a \0 b \udce9 ä \N{PILE OF POO}")
        store.finish("study", 0, failure)
        assert store.trials("study")[0].message == "a ? b ? ä \N{PILE OF POO}"

    def test_many_create_at_once(self, store_url: str) -> None:
        """The database and the same study; nobody fails."""

        def create(number: int) -> None:
            with Store.open(store_url, create=True) as store:
                store.begin_study(sample_study("shared", 3))
                store.begin_study(sample_study(f"own-{number}", 1))

        _at_once(create, 6)
        with Store.open(store_url, create=False) as store:
            assert {s.name: s.trials for s in store.studies()} == {
                "shared": 3,
                **{f"own-{number}": 1 for number in range(6)},
            }

    def test_many_write_at_once(self, store: Store, store_url: str) -> None:
        """Outcomes of one study and of two, with equal structures and rankings: all are stored."""
        for name in ("a", "b"):
            store.begin_study(sample_study(name, 24))

        def write(number: int) -> None:
            with Store.open(store_url, create=True) as own:
                for trial in range(number, 24, 4):
                    for name in ("a", "b") if number % 2 else ("b", "a"):
                        ranking = (f"key-{trial // 4}", Ranking((0.5,), "s3pet", 0))
                        outcome = sample_outcome(trial % 5, 1 + trial % 3)
                        own.start(name, trial)
                        own.finish(name, trial, replace(outcome, ranking=ranking))

        _at_once(write, 4)
        assert [(s.trials, s.finished) for s in store.studies()] == [(24, 24)] * 2
        check_answers(store)

    def test_second_driver_is_refused(self, store: Store, other: Store) -> None:
        """It learns who holds the study; the same process may acquire again."""
        store.begin_study(sample_study())
        other.acquire("study")
        with pytest.raises(LeaseError, match="another-machine:4711, whose lease ends at 2"):
            store.acquire("study")
        other.acquire("study")
        other.renew("study")
        assert store.find_study("study").owner == "another-machine:4711"

    def test_lease_ends(self, store: Store, other: Store) -> None:
        """By release, or, on another machine, by time; who lost it is told when it renews."""
        store.begin_study(sample_study())
        store.acquire("study")
        store.release("study")
        other.acquire("study", lease_seconds=-1)
        store.acquire("study")
        with pytest.raises(LeaseError, match="lost"):
            other.renew("study")
        other.release("study")
        store.renew("study")

    def test_who_lost_the_lease_writes_nothing(self, store: Store, other: Store) -> None:
        """Its trials are another driver's now, finished or not."""
        store.begin_study(sample_study())
        other.acquire("study", lease_seconds=-1)
        other.start("study", 0, "old")
        store.acquire("study")
        store.start("study", 0, "new")
        before = store.trials("study"), store.attempts("study")
        late: list[Callable[[], None]] = [
            lambda: other.finish("study", 0, sample_outcome()),
            lambda: other.start("study", 1, "old"),
            lambda: other.retry("study", 0, "lost", "gone"),
            lambda: other.add_late("study", 0, "old", sample_outcome()),
        ]
        for write in late:
            with pytest.raises(LeaseError, match="is lost, held by"):
                write()
        assert (store.trials("study"), store.attempts("study")) == before
        store.finish("study", 0, sample_outcome())

    def test_a_live_process_on_this_machine_keeps_its_lease(
        self, store: Store, other: Store
    ) -> None:
        """However long it loads or measures without a renewal."""
        store.begin_study(sample_study())
        store.acquire("study", lease_seconds=-1)
        with pytest.raises(LeaseError, match=str(Owner.current())):
            other.acquire("study")
        store.renew("study")

    def test_resume_queues_again_what_a_dead_driver_left(
        self, store: Store, store_url: str
    ) -> None:
        """Its lease is free at once; finished trials stay, attempts add up."""
        store.begin_study(sample_study(trials=3))
        with Store.open(store_url, create=True, owner=_dead_process()) as dead:
            dead.acquire("study")
            dead.finish("study", 0, sample_outcome())
            dead.start("study", 1)
        store.acquire("study")
        assert [t.number for t in store.queued("study")] == [1, 2]
        store.start("study", 1)
        assert [t.attempts for t in store.trials("study")] == [0, 2, 0]

    def test_attempts_are_remembered(self, store: Store) -> None:
        """Who tried, how it ended, and what came too late; progress moves the deadline."""
        store.begin_study(sample_study())
        store.acquire("study")
        store.start("study", 0, "worker 1", attempt_seconds=-1)
        (first,) = store.attempts("study")
        assert (first.state, first.deadline < first.started_at) == ("running", True)
        store.renew("study", progressed=[1])
        assert store.attempts("study") == (first,)
        store.renew("study", progressed=[0])
        assert store.attempts("study")[0].deadline > first.started_at
        store.retry("study", 0, "lost", "its worker died")
        assert store.trials("study")[0].state == "queued"
        store.start("study", 0, "worker 2")
        store.finish("study", 0, sample_outcome(0.5))
        before = store.trials("study")[0]
        store.add_late("study", 0, "worker 1", sample_outcome(0.25))
        assert [(a.number, a.worker, a.state) for a in store.attempts("study")] == [
            (1, "worker 1", "lost"),
            (2, "worker 2", "ok"),
            (3, "worker 1", "late"),
        ]
        assert all(a.ended_at is not None for a in store.attempts("study"))
        assert "validation 0.25" in store.attempts("study")[2].message
        assert store.trials("study")[0] == replace(before, attempts=3)

    def test_a_driver_is_asked_to_stop(self, store: Store, other: Store) -> None:
        """Asking ends with the lease; the next driver does not hear of it."""
        store.begin_study(sample_study())
        other.acquire("study")
        assert store.ask_to_stop("study") == "another-machine:4711"
        assert other.stop_asked("study")
        other.release("study")
        assert not other.stop_asked("study")
        assert store.ask_to_stop("study") is None
        assert not store.stop_asked("study")

    def test_stopping_frees_what_a_dead_driver_held(self, store: Store, store_url: str) -> None:
        """Its lease is gone, and what it ran is queued."""
        store.begin_study(sample_study())
        with Store.open(store_url, create=True, owner=_dead_process()) as dead:
            dead.acquire("study")
            dead.start("study", 0, "w")
        assert store.ask_to_stop("study") is None
        assert store.find_study("study").owner is None
        assert [t.state for t in store.trials("study")] == ["queued", "queued"]
        assert [a.state for a in store.attempts("study")] == ["interrupted"]

    def test_a_ranking_is_kept_before_its_trial_ends(self, store: Store) -> None:
        """And the trial's outcome may bring it again."""
        store.begin_study(sample_study())
        ranking = Ranking((0.1, 0.2), "s3pet", 3)
        store.add_ranking("key", ranking)
        store.add_ranking("key", Ranking((9.0,), "s3pet", 4))
        assert store.ranking("key") == ranking
        store.finish("study", 0, replace(sample_outcome(), ranking=("key", ranking)))
        assert store.ranking("key") == ranking

    def test_best_is_feasible_and_has_a_structure(self, store: Store) -> None:
        """Failed trials and references never win, however high their score."""
        store.begin_study(sample_study(trials=5))
        outcomes: Sequence[Outcome] = (
            sample_outcome(0.9, state="failed"),
            sample_outcome(0.8, structure=False),
            sample_outcome(0.3),
            sample_outcome(0.95, state="infeasible"),
        )
        for number, outcome in enumerate(outcomes):
            store.finish("study", number, outcome)
        best = store.best()
        assert best is not None and (best.trial, best.score) == (2, 0.3)
        assert store.find_study("study").best_score == 0.3
        assert [b.trial for b in store.pareto("study")] == [2]
        assert store.find_structure(sample_structure().hash[:4]).trial == 2

    def test_best_breaks_ties(self, store: Store) -> None:
        """Fewer parameters, then the earlier trial."""
        store.begin_study(sample_study(trials=4))
        for number, params in ((3, 50), (2, 50), (1, 60), (0, 70)):
            store.finish("study", number, sample_outcome(0.5, params))
        best = store.best()
        assert best is not None and (best.trial, best.trainable_params) == (2, 50)

    def test_best_within_limits(self, store: Store) -> None:
        """A share counts against each study's own backbone, rounded down."""
        store.begin_study(sample_study("small", 1, backbone_params=999_999))
        store.begin_study(sample_study("large", 2, model="other", backbone_params=2_000_000))
        store.finish("small", 0, sample_outcome(0.9, 100, ratio=0.75))
        store.finish("large", 0, sample_outcome(0.8, 200, ratio=0.75001))
        store.finish("large", 1, sample_outcome(0.7, 10))

        def found(**limits: str | int | float) -> tuple[str, int] | None:
            best = store.best(**limits)  # type: ignore[arg-type]
            return None if best is None else (best.study, best.trial)

        assert found() == ("small", 0)
        assert found(max_trainable_params="0.01%") == ("large", 0)
        assert found(max_trainable_params=100) == found(max_trainable_params="100") == ("small", 0)
        assert found(max_trainable_params=99) == ("large", 1)
        assert found(max_trainable_params=9) is None
        assert found(max_inference_flops="75%") == found(max_inference_flops=0.75) == ("small", 0)
        assert found(model="other") == found(study="lar") == ("large", 0)
        assert found(model="other", max_inference_flops="75%") is None
        assert found(task="sst2") is None

    def test_best_at_least_so_sparse(self, store: Store) -> None:
        """By what was measured; a trial without that measurement is dense."""
        store.begin_study(sample_study(trials=3))
        for number, (score, share) in enumerate(((0.7, 0.9), (0.8, 0.5))):
            store.finish("study", number, sample_outcome(score, layer=number, sparsity=share))
        store.finish("study", 2, sample_outcome(0.9, layer=2))
        found = [store.best(min_weight_sparsity=share) for share in (None, 0.5, "50%", "90%")]
        assert [(b.trial, b.weight_sparsity) for b in found if b is not None] == [
            (2, 0.0),
            (1, 0.5),
            (1, 0.5),
            (0, 0.9),
        ]
        assert store.best(min_weight_sparsity="91%") is None
        assert [b.trial for b in store.pareto("study")] == [0, 1, 2]

    @pytest.mark.parametrize("seed", range(2))
    def test_answers_are_those_of_brute_force(self, store: Store, seed: int) -> None:
        """Of ``best`` within any limits and of ``pareto``, as outcomes with many ties come in."""
        draw = random.Random(seed)
        for name in ("b", "a"):
            store.begin_study(sample_study(name, 30))
        todo = [(name, number) for name in "ab" for number in range(30)]
        draw.shuffle(todo)
        states: tuple[FinishedState, ...] = ("ok", "ok", "ok", "ok", "failed")
        for done, (name, number) in enumerate(todo):
            outcome = sample_outcome(
                draw.choice([0.0, 0.25, 0.5, 0.75, 1.0, float("nan")]),
                draw.randrange(1, 6),
                ratio=draw.choice([0.5, 0.75, 1.0]),
                sparsity=draw.choice([0.0, 0.0, 0.5, 0.9]),
                state=draw.choice(states),
                structure=draw.random() < 0.9,
            )
            store.finish(name, number, outcome)
            if done in (9, 24, 59):
                check_answers(store)

    def test_tasks_of_one_name_are_told_apart_by_their_data(self, store: Store) -> None:
        """Every answer is for one of them: ``best``, also within limits, and what is transferred to another."""
        specs = [
            sample_study(name, 2, config=task_config(train), task="train")
            for name, train in (("a", "5e1f"), ("b", "0dd5"), ("again", "5e1f"))
        ]
        for spec, score in zip(specs, (0.6, 0.9, 0.7), strict=True):
            store.begin_study(spec)
            made = Ranking((0.5,), "s3pet", 0, 3, 1.0, "f00d", "5ace", "train")
            outcome = replace(sample_outcome(score), ranking=(spec.name, made))
            store.finish(spec.name, 0, outcome)
        first, other, again = (spec.task_fingerprint for spec in specs)
        assert first == again != other
        assert [s.task_fingerprint for s in store.studies()] == [first, other, first]
        for question in (
            BestQuery(),
            BestQuery(task="train"),
            BestQuery(max_trainable_params=100),
        ):
            found = store.best_of_each_task(question)
            assert [(b.study, b.score) for b in found] == [("again", 0.7), ("b", 0.9)]
            assert [b.task_fingerprint for b in found] == [first, other]
            with pytest.raises(
                ConfigError, match=f"study b\\), fingerprint {other[:8]}"
            ) as caught:
                store.best(**vars(question))
            assert "--task or --study" in caught.value.hint
        for asked in ({"task": other[:8]}, {"study": "b"}):
            best = store.best(**asked)
            assert best is not None and best.study == "b"
        assert store.best(task=other[:3]) is None, "as short as that it is a name"
        assert store.transferable("5ace", first) == "b"
        assert store.transferable("5ace", other) == "again"
        check_answers(store)

    def test_one_task_may_have_several_names(self, store: Store) -> None:
        """A copy of the data elsewhere, other words for it, shorter inputs: scores compare."""
        changes: tuple[dict[str, Any], ...] = (
            {},
            {"data": {"path": "json", "data_files": {"train": "copy/train.jsonl"}}},
            {"name": "moods"},
            {"max_length": 64},
        )
        for number, changed in enumerate(changes):
            name, config = f"study-{number}", task_config("5e1f", **changed)
            store.begin_study(sample_study(name, 1, config=config, task=f"task-{number}"))
            store.finish(name, 0, sample_outcome(0.5 + number / 10))
        assert len({s.task_fingerprint for s in store.studies()}) == 1
        best = store.best(task="task-0")
        assert best is not None and best.study == "study-3"

    def test_a_structure_of_two_tasks_of_one_name_wants_a_study(self, store: Store) -> None:
        """Its scores on the two do not compare."""
        for name, train in (("one", "aa"), ("two", "bb")):
            store.begin_study(sample_study(name, 1, config=task_config(train)))
            store.finish(name, 0, sample_outcome())
        best = store.best(study="one")
        assert best is not None
        with pytest.raises(StoreError, match="trained on several tasks"):
            store.find_structure(best.structure.hash)
        assert store.find_structure(best.structure.hash, "two").study == "two"

    def test_a_study_of_a_folder_goes_on_whose_digests_were_not_stored(self, store: Store) -> None:
        """Version 0.1 stored those of single files alone."""
        config = {"task": {"data": {"path": "folder"}, "text": ["text"]}}
        spec = sample_study("folder", 1, config=json.dumps(config))
        store.begin_study(spec)
        now = json.dumps({**config, "data_sha256": {"train.jsonl": "aa"}})
        store.begin_study(sample_study("folder", 2, config=now))
        assert store.find_study("folder").trials == 2

    @pytest.mark.parametrize(
        "changed",
        [
            {"type": "regression"},
            {"label": "mood"},
            {"labels": [1, 0]},
            {"text": ["question"]},
            {"max_train_rows": 32},
            {"data": {"path": "json", "splits": {"validation": "train[80%:]"}}},
        ],
    )
    def test_what_changes_the_scores_makes_another_task(
        self, store: Store, changed: dict[str, Any]
    ) -> None:
        """Type, columns, labels, rows, splits."""
        store.begin_study(sample_study("a", 1, config=task_config("5e1f")))
        store.begin_study(sample_study("b", 1, config=task_config("5e1f", **changed)))
        assert len({s.task_fingerprint for s in store.studies()}) == 2

    def test_data_of_unknown_content_is_the_same_in_no_other_study(self, store: Store) -> None:
        """Early versions stored paths alone, and a path may lead to other data elsewhere; hub data has a name."""
        files = json.loads(task_config("5e1f"))
        del files["data_sha256"]
        hub = {"task": {"data": {"path": "glue", "name": "rte"}, "text": ["text"]}}
        for name, config in (("a", files), ("b", files), ("c", hub), ("d", hub)):
            store.begin_study(sample_study(name, 1, config=json.dumps(config)))
        a, b, c, d = (s.task_fingerprint for s in store.studies())
        assert a != b and c == d and c not in (a, b)

    def test_a_models_name_stands_for_one_backbone(self, store: Store) -> None:
        """A folder's weights may change, or another folder have its name: ``best`` of that model is refused."""
        weights = {"a": "2-aaaa", "b": "2-bbbb", "c": "2-aaaa", "d": "3-cccc", "e": "f00d"}
        for number, (name, fingerprint) in enumerate(weights.items()):
            task = "rte" if name == "b" else "trec"
            store.begin_study(sample_study(name, 1, model="../m", task=task))
            outcome = sample_outcome(0.5 + number / 10)
            assert outcome.structure is not None
            backbone = replace(outcome.structure.backbone, weight_fingerprint=fingerprint)
            structure = replace(outcome.structure, backbone=backbone)
            store.finish(name, 0, replace(outcome, structure=structure))
        with pytest.raises(ConfigError, match=r"'../m' had 2 different weights") as caught:
            store.best(model="../m")
        assert "study a (2-aaaa), study b (2-bbbb)" in caught.value.problems[0]
        assert "--study" in caught.value.hint
        for asked in ({"model": "../m", "study": "b"}, {"model": "../m", "task": "rte"}):
            best = store.best(**asked)
            assert best is not None and best.study == "b"
        best = store.best(model="../m", task="trec")
        assert best is not None and best.study == "e", "other forms of a fingerprint say nothing"

    def test_numbers_come_back_as_they_went_in(self, store: Store) -> None:
        """Each bit of a score; an undefined one is NULL, in JSON null, which is not the JSON of nothing."""
        store.begin_study(sample_study(trials=3))
        outcome = replace(sample_outcome(1 / 3, ratio=0.1 + 0.2), history=(0.1 + 0.2, math.nan))
        store.finish("study", 0, outcome)
        store.finish("study", 1, replace(sample_outcome(math.nan), history=(math.inf,)))
        store.finish("study", 2, sample_outcome())
        first, second, third = store.trials("study")
        assert (first.score, first.inference_flops_ratio) == (1 / 3, 0.1 + 0.2)
        assert first.history[0] == 0.1 + 0.2 and math.isnan(first.history[1])
        assert second.score is None and math.isnan(second.history[0])
        assert (third.history, third.settings) == ((), {})
        history = [self.stored_json(store, "history", number) for number in range(3)]
        assert history == [[0.1 + 0.2, None], [None], "NULL"]
        assert self.stored_json(store, "settings", 0) == "NULL"

    @pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
    def test_a_number_that_is_not_finite_is_refused_by_name(
        self, store: Store, number: float
    ) -> None:
        """In settings, budgets and configurations: it would break every JSON query of its table."""
        store.begin_study(sample_study())
        budget = Budget(max_inference_flops=number)
        for trial in (
            Trial(2, "probe", None, 5, (("train.lr", number),)),
            Trial(2, "probe", budget, 5),
        ):
            with pytest.raises(StoreError, match=f"{number}.* not finite"):
                store.add_trial("study", trial)
        with pytest.raises(ConfigError, match="is no number that can be stored"):
            store.begin_study(sample_study("other", config=json.dumps({"clip": number})))
        assert [s.name for s in store.studies()] == ["study"]
        assert len(store.trials("study")) == 2

    @staticmethod
    def stored_json(store: Store, column: str, number: int) -> Any:
        """What a JSON column of a trial holds, read by the database itself; "NULL" where that is what it holds."""
        with store._database.reading() as session:
            kind = "json_type" if session.get_bind().dialect.name == "sqlite" else "json_typeof"
            query = text(f"SELECT {kind}({column}), {column} FROM trials WHERE number = {number}")
            kind_, value = session.execute(query).one()
        if kind_ is None:
            return "NULL"
        return json.loads(value) if isinstance(value, str) else value

    def test_best_carries_its_own_provenance(self, store: Store) -> None:
        """Also where an equal structure was stored by another trial."""
        store.begin_study(sample_study())
        store.finish("study", 0, sample_outcome(0.1))
        store.finish("study", 1, sample_outcome(0.2))
        best = store.best()
        assert best is not None and best.structure == sample_structure()
        assert best.structure.provenance == Provenance("study", 1, "s3pet", 11)
        assert best.budget == {"max_trainable_params": 100, "text": "0.01%"}

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

    def test_a_structure_of_several_tasks_belongs_to_a_study(self, store: Store) -> None:
        """Uniform structures are the same on every task; their scores and weights are not."""
        for name, task, score in (("first", "trec", 0.9), ("second", "rte", 0.6)):
            store.begin_study(replace(sample_study(name, 2), task=task))
            store.finish(name, 0, sample_outcome(score, 40))
        name = sample_structure(40).hash
        with pytest.raises(StoreError, match=r"several tasks: first \(trec\), second \(rte\)"):
            store.find_structure(name)
        assert store.find_structure(name, "second").score == 0.6
        assert store.find_structure(name, study="fir").study == "first"
        store.finish("second", 1, sample_outcome(0.7, 41))
        with pytest.raises(StoreError, match="no successful trial"):
            store.find_structure(sample_structure(41).hash, "first")

    def test_structure_prefixes(self, store: Store) -> None:
        """At least four characters; two structures that fit are both named."""
        hashes: dict[str, list[int]] = {}
        params = 0
        while not any(len(same) == 2 for same in hashes.values()):
            params += 1
            hashes.setdefault(sample_structure(params).hash[:4], []).append(params)
        prefix, pair = next((p, same) for p, same in hashes.items() if len(same) == 2)
        store.begin_study(sample_study())
        for number, size in enumerate(pair):
            store.finish("study", number, sample_outcome(0.5, size))
        first, second = (sample_structure(size).hash for size in pair)
        assert store.find_structure(first.upper()).structure.hash == first
        with pytest.raises(StoreError) as caught:
            store.find_structure(prefix)
        assert first[:12] in caught.value.message and second[:12] in caught.value.message
        for wrong in (first[:3], "no hash", "%%%%", first + "0"):
            with pytest.raises(StoreError, match="names no structure"):
                store.find_structure(wrong)
        assert store.load_structure(second[:12]) == sample_structure(pair[1])
        absent = "0000" if not prefix.startswith("0000") else "1111"
        with pytest.raises(StoreError, match="no successful trial"):
            store.find_structure(absent + "0" * 20)
