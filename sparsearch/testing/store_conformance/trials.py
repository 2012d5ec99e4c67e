"""Trials, their outcomes and rankings."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import text

from sparsearch.errors import ConfigError, StoreError
from sparsearch.results.records import (
    NOT_RUN,
    Environment,
    FinishedState,
    Outcome,
    Trial,
)
from sparsearch.results.store.store import Store
from sparsearch.spaces.budget import Budget
from sparsearch.spaces.ranking import AlphaTrace, Ranking
from sparsearch.testing.store_conformance.samples import (
    sample_outcome,
    sample_structure,
    sample_study,
)

__all__ = ["TrialsConformance"]


class TrialsConformance:
    """Trials, their outcomes and rankings."""

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
        small = Budget(max_trainable_params=100)
        assert store.transferable("5ace", "sst2", budget=small) == "key2"
        assert store.transferable("5ace", "sst2", backbone="f00d") == "key1"
        sparse = Budget(max_trainable_params=100, min_weight_sparsity=0.4)
        assert store.transferable("5ace", "sst2", budget=sparse) is None, "no search weighed masks"
        assert store.searched_under("key1", small) and not store.searched_under("key1", sparse)
        own = spec.task_fingerprint
        assert store.transferable("5ace", own) is None, "it is that task's own"
        assert store.transferable("5ace", own, study="stu") == "key1", "unless it is named"
        assert store.transferable("else", "sst2") is None
        assert store.transferable("5ace", "sst2", backbone="else") is None
        with pytest.raises(StoreError, match="no study 'other'"):
            store.transferable("5ace", "sst2", study="other")

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
        assert trial.environment == vars(environment)
        assert trial.started_at is not None and trial.finished_at is not None
        assert trial.started_at <= trial.finished_at
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

    @pytest.mark.parametrize("state", NOT_RUN)
    def test_a_trial_that_was_left_out_may_be_queued_again(
        self, store: Store, state: FinishedState
    ) -> None:
        """It then runs as if it had never been left out; others stay as they ended."""
        store.begin_study(sample_study())
        store.finish("study", 0, sample_outcome(0.5))
        store.finish("study", 1, Outcome(state, "not needed"))
        assert store.find_study("study").finished == 2
        before = store.trials("study")
        store.requeue("study", [0, 1])
        first, second, *_ = store.trials("study")
        assert (first, second.state, second.message) == (before[0], "queued", "")
        store.start("study", 1)
        store.finish("study", 1, sample_outcome(0.7))
        assert store.trials("study")[1].score == 0.7
        with pytest.raises(StoreError, match="no trial 99"):
            store.requeue("study", [99])

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
        trace = AlphaTrace(("layers.0.attn.q lora 1",), (150, 300), ((0.25,), (-0.5,)))
        first = Ranking((0.1, -1 / 3, 1e-300), "s3pet", 3, steps=300, seconds=12.5, trace=trace)
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

    def test_a_ranking_is_kept_before_its_trial_ends(self, store: Store) -> None:
        """And the trial's outcome may bring it again."""
        store.begin_study(sample_study())
        ranking = Ranking((0.1, 0.2), "s3pet", 3)
        store.add_ranking("key", ranking)
        store.add_ranking("key", Ranking((9.0,), "s3pet", 4))
        assert store.ranking("key") == ranking
        store.finish("study", 0, replace(sample_outcome(), ranking=("key", ranking)))
        assert store.ranking("key") == ranking

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
