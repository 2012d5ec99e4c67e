"""Studies that race, on the simulated runner: the real driver and store, no model."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace

import numpy as np
import pytest

from sparsearch.config.study import StudyConfig
from sparsearch.results.records import NOT_RUN, Measurement, Outcome
from sparsearch.results.report.summary import summarise
from sparsearch.results.store.store import Store
from sparsearch.testing.simulate import simulate
from sparsearch.testing.simulated_runner import Course, Failures, SimulatedRunner
from sparsearch.workers.callbacks import StudyCallbacks

SCORES = {
    "s3pet": 0.93,
    "probe": 0.928,
    "random": 0.86,
    "lora-qv": 0.80,
    "head": 0.5,
    "full": 0.94,
}
BUDGETS = [800, 2300, 8000]


@dataclass(frozen=True)
class Table:
    """A world whose scores are known; ``failing`` never succeeds."""

    noise: float = 0.003
    failing: str = ""

    def course(self, trial):
        rng = np.random.default_rng([trial.seed, trial.number])
        score = SCORES[trial.strategy] + float(rng.normal(0, self.noise))
        limit = dict(trial.budget.limits)["max_trainable_params"] if trial.budget else 0
        share = 0.7 if trial.strategy == "lora-qv" else 0.99
        measured = (Measurement("accuracy", "validation", score),)
        outcome = Outcome("ok", measurements=measured, trainable_params=int(share * limit))
        if trial.strategy == self.failing:
            outcome = Outcome("failed", "it does not train")
        return Course(10.0, (score,), outcome)


def study(**settings):
    return StudyConfig.model_validate(
        {
            "name": "raced",
            "model": {"path": "none"},
            "task": {"name": "none", "data": {"path": "json"}, "text": ["text"]},
            "space": {"preset": "fine"},
            "budgets": {"max_trainable_params": BUDGETS},
            "baselines": ["probe", "random", "lora-qv", "head", "full"],
            "seeds": [0, 1, 2],
            **settings,
        }
    )


@pytest.fixture
def store(tmp_path):
    with Store.open(tmp_path / "raced.db", create=True) as store:
        yield store


def run(store, config=None, workers=1, world=Table(), listener=None, **failures):  # noqa: B008
    runner = SimulatedRunner(world, [1.0] * workers, Failures(**failures))
    record = simulate(config or study(), store, runner, listener)
    return record, store.trials("raced")


def states(trials):
    return {(t.strategy, str(t.budget), t.seed): t.state for t in trials}


def answers(record, trials):
    return [b.recommended[0].split(" (")[0] for b in summarise(record, trials).budgets]


def test_a_race_recommends_what_the_exhaustive_study_does_with_fewer_trials(store, tmp_path):
    record, raced = run(store)
    with Store.open(tmp_path / "full.db", create=True) as other:
        whole, full = run(other, study(race=False))
    assert Counter(t.state for t in full) == {"ok": 42}
    assert answers(record, raced) == answers(whole, full)
    ran = [t for t in raced if t.state == "ok"]
    assert len(ran) < 0.7 * len(full)
    assert record.state == "finished"
    scores = {t.number: t.score for t in full}
    assert {t.number: t.score for t in ran} == {t.number: scores[t.number] for t in ran}
    assert {t.state for t in raced if t.strategy == "full" and t.seed > 0} == {"decided"}
    assert {t.state for t in raced if t.seed == 0} == {"ok"}


def test_the_summary_says_what_was_not_run_and_why(store):
    record, raced = run(store)
    summary = summarise(record, raced)
    assert summary.unsuccessful == ()
    for budget in summary.budgets:
        (line,) = [f for f in summary.findings(budget) if f.startswith("not run: ")]
        left_out = sum(t.state in NOT_RUN for t in raced if t.budget == budget.budget)
        assert line.startswith(f"not run: {left_out} of 12 trials")
        assert "at most (run --exhaustive runs them)" in line
        assert "add seeds" not in " ".join(summary.findings(budget))


class Killed(Exception):
    """As if the driver was killed."""


class KilledAt(StudyCallbacks):
    def __init__(self, left):
        self.left = left

    def finished(self, trial, outcome):
        self.left -= 1
        if self.left == 0:
            raise Killed


@pytest.mark.parametrize("workers", [1, 4])
def test_a_race_that_is_killed_leaves_out_what_it_would_have_left_out(store, tmp_path, workers):
    _, whole = run(store, workers=workers)
    with Store.open(tmp_path / "killed.db", create=True) as other:
        for left in (3, 10, 1, 4, 2):
            with pytest.raises(Killed):
                run(other, workers=workers, listener=KilledAt(left))
        _, resumed = run(other, workers=workers)
    assert states(resumed) == states(whole)


@pytest.mark.parametrize("failures", [{"killed": 0.3}, {"oom": 0.2, "late": 0.1}])
def test_lost_workers_are_waited_for(store, failures):
    record, raced = run(store, workers=3, **failures)
    assert record.state == "finished"
    assert {t.state for t in raced if t.seed == 0} <= {"ok", "oom", "failed"}
    assert any(t.state in NOT_RUN for t in raced)


def test_exhaustive_fills_in_what_a_race_left_out(store, tmp_path):
    run(store)
    record, filled = run(store, study(race=False))
    with Store.open(tmp_path / "full.db", create=True) as other:
        _, full = run(other, study(race=False))
    assert record.state == "finished"
    assert [(t.number, t.state, t.score) for t in filled] == [
        (t.number, t.state, t.score) for t in full
    ]
    _, again = run(store)
    assert again == filled


def test_further_seeds_and_strategies_are_raced_too(store):
    small = study(seeds=[0, 1], baselines=["random", "head"])
    run(store, small)
    record, grown = run(store)
    assert record.state == "finished"
    assert {t.state for t in grown if t.seed == 0} == {"ok"}
    survivors = {t.strategy for t in grown if t.seed == 2 and t.state == "ok" and t.budget}
    assert survivors <= {"s3pet", "probe"}


def test_what_fails_is_tried_with_one_seed_while_others_succeed(store):
    _, raced = run(store, world=Table(failing="random"))
    assert Counter(t.state for t in raced if t.strategy == "random") == {
        "failed": 3,
        "outraced": 6,
    }


@pytest.mark.parametrize(
    "settings", [{"seeds": [0]}, {"outer": {"trials": 2, "sampler": "random"}}]
)
def test_one_seed_and_an_outer_loop_are_not_raced(store, settings):
    _, trials = run(store, study(**settings))
    assert not any(t.state in NOT_RUN for t in trials)


def test_a_finished_trial_is_not_queued_again(store):
    _, raced = run(store)
    store.acquire("raced")
    store.requeue("raced", [t.number for t in raced])
    after = {t.number: t for t in store.trials("raced")}
    for trial in raced:
        left_out = trial.state in NOT_RUN
        expected = replace(trial, state="queued", message="") if left_out else trial
        assert after[trial.number] == expected
