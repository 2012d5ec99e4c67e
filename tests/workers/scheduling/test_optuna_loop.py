"""The outer loop on a simulated runner: the real driver and store, thousands of virtual seconds, no model."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from statistics import fmean

import optuna
import pytest
from optuna.trial import TrialState

from sparsearch.config.study import StudyConfig
from sparsearch.results.records import FINISHED, Outcome, Trial
from sparsearch.results.store.store import Store
from sparsearch.spaces.budget import Budget
from sparsearch.testing.simulate import simulate
from sparsearch.testing.simulated_runner import Failures, SimulatedRunner, SyntheticFront
from sparsearch.workers.callbacks import StudyCallbacks

TUNE = {
    "train.lr": {"from": 0.002, "to": 0.2, "log": True},
    "search.alpha_lr": {"from": 0.01, "to": 0.3, "log": True},
    "search.steps": {"from": 20, "to": 300},
    "search.start": ["zero", "probe"],
}


def study(baselines=("random",), seeds=(0,), **outer):
    return StudyConfig.model_validate(
        {
            "name": "front",
            "model": {"path": "none"},
            "task": {"name": "none", "data": {"path": "json"}, "text": ["text"]},
            "space": {"preset": "fine"},
            "budgets": {"max_trainable_params": {"from": "0.0035%", "to": "0.5%"}},
            "outer": {"sampler": "tpe", "tune": TUNE, **outer},
            "baselines": list(baselines),
            "seeds": list(seeds),
        }
    )


@pytest.fixture
def store(tmp_path):
    with Store.open(tmp_path / "front.db", create=True) as store:
        yield store


class Killed(Exception):
    """As if the driver was killed."""


class KilledAfter(StudyCallbacks):
    """Kills the driver when so many trials have ended, before the next one."""

    def __init__(self, left):
        self.left = left

    def started(self, trial):
        if self.left == 0:
            raise Killed
        self.left -= 1


def essence(store):
    return [
        (t.number, t.strategy, t.budget, t.settings, t.seed, t.state, t.score, t.history)
        for t in store.trials("front")
    ]


@pytest.mark.parametrize(
    ("sampler", "trials"),
    [("tpe", 16), ("tpe-front", 16), ("nsga2", 45), ("random", 16), ("gp", 12)],
)
def test_a_killed_study_proposes_what_an_uninterrupted_one_does(tmp_path, sampler, trials):
    config = study(sampler=sampler, trials=trials, early_stop="asha", seeds=(0, 1))
    world = SyntheticFront()
    with Store.open(tmp_path / "whole.db", create=True) as store:
        simulate(config, store, SimulatedRunner(world))
        whole = essence(store)
    with Store.open(tmp_path / "broken.db", create=True) as store:
        for trials_more in (3, 11, 6):
            with pytest.raises(Killed):
                simulate(config, store, SimulatedRunner(world), KilledAfter(trials_more))
        simulate(config, store, SimulatedRunner(world))
        assert essence(store) == whole
    points = {(str(t[2]), str(t[3])) for t in whole[12:]}
    assert len(whole) == 12 + trials
    assert len(points) == trials or sampler == "nsga2", "only a child may equal its parent"


def test_proposals_lie_in_the_search_space_and_are_all_one_needs(store):
    record = simulate(study(trials=30, seeds=(3, 4)), store, SimulatedRunner(SyntheticFront()))
    assert (record.trials, record.finished) == (12 + 30, 12 + 30)
    proposed = store.trials("front")[12:]
    for t in proposed:
        assert 794 <= t.budget["max_trainable_params"] <= 113_566
        assert t.budget["text"] == f"{t.budget['max_trainable_params']:,} params"
        assert list(t.settings) == list(TUNE)
        assert 0.002 <= t.settings["train.lr"] <= 0.2
        assert isinstance(t.settings["search.steps"], int)
        assert t.settings["search.start"] in ("zero", "probe")
        changed = study().with_settings(t.settings.items())
        assert changed.train.lr == t.settings["train.lr"]
    assert [t.seed for t in proposed[:4]] == [3, 4, 3, 4]
    places = sorted(SyntheticFront().place(t.budget["max_trainable_params"]) for t in proposed)
    assert max(b - a for a, b in zip(places, places[1:], strict=False)) < 0.1, "budgets are spread"


@pytest.mark.parametrize("rule", ["asha", "hyperband"])
def test_early_stop_spares_no_budget_and_no_plan(store, rule):
    config = study(sampler="random", trials=160, early_stop=rule)
    simulate(config, store, SimulatedRunner(SyntheticFront(), speeds=[1.0] * 8))
    planned, proposed = store.trials("front")[:6], store.trials("front")[6:]
    assert {t.state for t in planned} == {"ok"}
    stopped = [t for t in proposed if t.state == "cancelled"]
    assert 0.2 < len(stopped) / len(proposed) < 0.85
    assert all(0 < len(t.history) < 3 and t.score is None for t in stopped)
    world = SyntheticFront()

    def share(low, high):
        here = [t for t in proposed if low <= world.place(t.budget["max_trainable_params"]) < high]
        return sum(t.state == "cancelled" for t in here) / len(here)

    assert abs(share(0, 0.33) - share(0.67, 1.01)) < 0.25, "small budgets race among themselves"
    kept = [t for t in proposed if t.state == "ok"]
    assert fmean(shortfall(world, t) for t in kept) < fmean(shortfall(world, t) for t in stopped)


def shortfall(world, t):
    """What a trial's settings cost, without noise."""
    trial = Trial(t.number, t.strategy, Budget(**t.budget), t.seed, tuple(t.settings.items()))
    return world.ceiling(t.budget["max_trainable_params"]) - world.score(trial)


class Narrow(SyntheticFront):
    """Nothing with more than 120 search steps is feasible; it would need twice the budget."""

    def course(self, trial):
        course = super().course(trial)
        if dict(trial.settings).get("search.steps", 100) <= 120:
            return course
        least = 2 * trial.budget.get("max_trainable_params")
        return replace(
            course, scores=(), outcome=Outcome("infeasible", "too small", trainable_params=least)
        )


@pytest.mark.parametrize("sampler", ["tpe", "tpe-front", "nsga2"])
def test_what_is_infeasible_is_avoided(store, sampler):
    config = study(sampler=sampler, trials=70, baselines=())
    simulate(config, store, SimulatedRunner(Narrow()))
    proposed = store.trials("front")[3:]
    infeasible = [t.state == "infeasible" for t in proposed]
    assert fmean(infeasible[:20]) > 0.3
    assert fmean(infeasible[-30:]) < 0.3


class Undefined(SyntheticFront):
    """Every third trial has a score that is not a number, as a correlation of constants is."""

    def course(self, trial):
        course = super().course(trial)
        if trial.number % 3:
            return course
        nothing = tuple(replace(m, value=float("nan")) for m in course.outcome.measurements)
        scores = (float("nan"),) * len(course.scores)
        return replace(
            course, scores=scores, outcome=replace(course.outcome, measurements=nothing)
        )


def test_an_undefined_score_teaches_nothing_and_breaks_nothing(store):
    config = study(trials=30, early_stop="asha")
    simulate(config, store, SimulatedRunner(Undefined()))
    assert {t.state for t in store.trials("front")[6:]} == {"ok", "cancelled"}
    assert all((t.score is None) for t in store.trials("front")[::3])


class Diverging(SyntheticFront):
    """Every third proposal has a score that is not finite from its second epoch on."""

    def __init__(self, score):
        super().__init__()
        object.__setattr__(self, "diverged", score)

    def course(self, trial):
        course = super().course(trial)
        if trial.number % 3:
            return course
        return replace(course, scores=(course.scores[0], *(self.diverged,) * 2))


@pytest.mark.parametrize("score", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("rule", ["asha", "hyperband"])
def test_a_diverged_proposal_is_the_first_to_go_and_frees_its_worker(store, rule, score):
    config = study(sampler="random", trials=60, early_stop=rule)
    runner = SimulatedRunner(Diverging(score))
    simulate(config, store, runner)
    planned, proposed = store.trials("front")[:6], store.trials("front")[6:]
    assert {t.state for t in planned} == {"ok"}, "planned trials always finish"
    diverged = [t for t in proposed if t.number % 3 == 0]
    assert {t.state for t in diverged} == {"cancelled"}
    assert max(t.seconds for t in diverged) == 2 * 60, "of three epochs"
    assert runner.now() == sum(t.seconds for t in store.trials("front"))


def test_a_diverged_proposal_goes_on_where_nothing_is_stopped_early(store):
    simulate(study(sampler="random", trials=12), store, SimulatedRunner(Diverging(float("nan"))))
    assert {t.state for t in store.trials("front")} == {"ok"}


@pytest.mark.parametrize("sampler", ["tpe", "tpe-front", "gp", "gp-front", "nsga2"])
def test_what_failed_is_never_the_samplers_best(store, sampler, monkeypatch):
    """Optuna takes a trial without a constraint for feasible, and the first constraint for the last word."""
    seen = []
    real = optuna.create_study

    def create(**settings):
        seen.append(real(**settings))
        return seen[-1]

    monkeypatch.setattr(optuna, "create_study", create)
    config = study(sampler=sampler, trials=17, baselines=())
    simulate(config, store, SimulatedRunner(Narrow(), failures=Failures(nan=0.4)))
    states = {t.state for t in store.trials("front")}
    assert states == {"ok", "failed", "infeasible"}
    expected = {"tpe": "TPESampler", "gp": "GPSampler", "nsga2": "NSGAIISampler"}
    asked = [s for s in seen if s.study_name != "race"]
    for asked_of in asked:
        inner = getattr(asked_of.sampler, "_base_sampler", asked_of.sampler)
        assert type(inner).__name__ == expected[sampler.removesuffix("-front")]
        finished = [t for t in asked_of.trials if t.state == TrialState.COMPLETE]
        violated = [t.constraints.get("limits", 0.0) > 0 for t in finished]
        if any(violated):
            assert all(set(t.constraints) == {"limits"} for t in finished)
    last = asked[-1].trials
    failed = [t.number for t in store.trials("front") if t.state == "failed"]
    assert sum(t.state == TrialState.FAIL for t in last) == len([n for n in failed if n < 19]) > 0
    assert not any(t.values for t in last if t.state == TrialState.FAIL)
    assert any(t.constraints.get("limits", 0.0) > 0 for t in last)
    assert all(t.constraints["limits"] <= 0 for t in asked[-1].best_trials)


def test_failures_are_outcomes_and_many_workers_lose_nothing(store):
    config = study(sampler="random", trials=300, early_stop="asha", seeds=(0, 1, 2))
    failures = Failures(oom=0.05, nan=0.05, killed=0.05, slow=0.1)
    runner = SimulatedRunner(SyntheticFront(), [1.0, 0.5, 2.0] * 10, failures)
    record = simulate(config, store, runner)
    assert record.finished == record.trials == 3 * 6 + 300
    trials, attempts = store.trials("front"), store.attempts("front")
    assert {t.state for t in trials} == {"ok", "failed", "cancelled"}, (
        "what is lost is tried again"
    )
    assert {a.state for a in attempts} == {"ok", "failed", "cancelled", "oom", "lost"}
    assert len(attempts) == sum(t.attempts for t in trials) > len(trials) + 10
    assert max(t.attempts for t in trials) <= config.workers.max_attempts


def test_hundreds_of_trials_end_once_each_whatever_comes_late(store):
    config = study(sampler="random", trials=400, seeds=(0, 1, 2))
    failures = Failures(oom=0.02, nan=0.02, killed=0.05, late=0.05, slow=0.1)
    runner = SimulatedRunner(SyntheticFront(), [1.0, 0.5, 2.0] * 20, failures)
    record = simulate(config, store, runner)
    assert record.finished == record.trials == 3 * 6 + 400
    attempts = Counter(a.state for a in store.attempts("front"))
    assert attempts["late"] > 12 and attempts["lost"] > 30
    last = {*FINISHED} - {"oom"}  # which is tried again
    ended = Counter(a.trial for a in store.attempts("front") if a.state in last)
    assert set(ended.values()) == {1}, "a late result is no second outcome"
    states = Counter(t.state for t in store.trials("front"))
    assert states["ok"] > 0.95 * record.trials and attempts["ok"] == states["ok"]


def test_workers_are_kept_busy(store):
    """Where no trial is so slow that all wait for it in the end."""
    config = study(sampler="random", trials=300, early_stop="asha", seeds=(0, 1, 2))
    runner = SimulatedRunner(SyntheticFront(), [1.0, 0.5, 2.0] * 10, Failures(nan=0.05))
    simulate(config, store, runner)
    assert sum(t.seconds for t in store.trials("front")) / (30 * runner.now()) > 0.8


def test_a_fixed_budget_is_not_turned(store):
    config = study(trials=15, baselines=())
    config = config.model_copy(update={"budgets": config.budgets[:1]})
    simulate(config, store, SimulatedRunner(SyntheticFront(low=700)))
    assert {t.budget["text"] for t in store.trials("front")[1:]} == {"794 params"}


def test_it_learns_more_from_forty_trials_than_chance(store):
    """The benchmark `outer_loop.py` in small: what settings cost, at the end."""
    ends = {}
    for sampler in ("random", "tpe"):
        config = study(sampler=sampler, trials=45, baselines=())
        config = config.model_copy(update={"name": sampler})
        simulate(config, store, SimulatedRunner(SyntheticFront()))
        ends[sampler] = fmean(shortfall(SyntheticFront(), t) for t in store.trials(sampler)[-15:])
    assert ends["tpe"] < 0.6 * ends["random"]
