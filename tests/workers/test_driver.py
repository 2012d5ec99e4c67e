"""The driver, with a runner that follows a script: attempts, late results, rankings, stopping."""

from __future__ import annotations

import pytest

from sparsearch.errors import Stopped
from sparsearch.results import Store
from sparsearch.results.records import Outcome
from sparsearch.spaces.ranking import Ranking
from sparsearch.testing.store_conformance import sample_outcome, sample_study
from sparsearch.workers.callbacks import StudyCallbacks
from sparsearch.workers.driver import Driver, DriverRules
from sparsearch.workers.execution.events import Ended, Lost, Progressed, Ranked, Started
from sparsearch.workers.scheduling.scheduler import FixedPlan


class Scripted:
    """Answers each job with the next events of its trial's script; its clock moves with every wait."""

    def __init__(self, script, slots=2, step=1.0):
        self.script = {number: list(attempts) for number, attempts in script.items()}
        self.slots, self.step, self.clock = slots, step, 0.0
        self.open, self.order, self.cancelled = [], [], set()

    def free(self):
        return self.slots - len(self.open)

    def submit(self, job):
        self.open.append(job)
        self.order.append((job.trial.number, job.attempt))

    def cancel(self, job):
        self.cancelled.add(job)

    def now(self):
        return self.clock

    def wait(self, handle):
        self.clock += self.step
        job = self.open[0]
        attempts = self.script.get(job.trial.number)
        events = attempts.pop(0) if attempts else [Ended(job, sample_outcome(0.5))]
        handle(Started(job, "worker"))
        for make in events:
            event = make(job) if callable(make) else make
            if isinstance(event, Ended | Lost) and event.job in self.open:
                self.open.remove(event.job)
            if job in self.cancelled:
                event = Ended(job, Outcome("cancelled"))
            handle(event)


def lost(job):
    return Lost(job, "its worker died")


def oom(job):
    return Ended(job, Outcome("oom", "CUDA out of memory"))


def ok(job):
    return Ended(job, sample_outcome(0.75))


def step(job):
    return Progressed(job, "train", 1, 2)


@pytest.fixture
def store(tmp_path):
    with Store.open(tmp_path / "sparsearch.db", create=True) as store:
        store.begin_study(sample_study(trials=3))
        store.acquire("study")
        yield store


def drive(store, runner, listen=None, shared=lambda trial: None, **settings):
    listen = listen or StudyCallbacks()
    queued = FixedPlan(store.queued("study"))
    Driver(store, "study", runner, queued, DriverRules(listen, shared, **settings)).run()


def tries(store):
    return [(a.trial, a.number, a.state) for a in store.attempts("study")]


def states(store):
    return [t.state for t in store.trials("study")]


def test_a_lost_trial_is_tried_again_after_the_others(store):
    runner = Scripted({0: [[lost]]}, slots=1)
    drive(store, runner)
    assert runner.order == [(0, 1), (1, 1), (2, 1), (0, 2)]
    assert states(store) == ["ok"] * 3
    assert tries(store) == [(0, 1, "lost"), (0, 2, "ok"), (1, 1, "ok"), (2, 1, "ok")]


@pytest.mark.parametrize(("event", "state"), [(lost, "failed"), (oom, "oom")])
def test_attempts_are_bounded_also_over_drivers(store, event, state):
    drive(store, Scripted({0: [[event]] * 3}), max_attempts=2)
    trial = store.trials("study")[0]
    assert (trial.state, trial.attempts) == (state, 2)
    assert "given up after 2 attempts" in trial.message
    assert states(store)[1:] == ["ok", "ok"]


def test_attempts_of_an_earlier_driver_count(store):
    store.start("study", 0, "worker")
    store.retry("study", 0, "lost", "its worker died")
    drive(store, Scripted({0: [[lost]]}), max_attempts=2)
    assert states(store) == ["failed", "ok", "ok"]


def test_what_fails_by_itself_is_not_tried_again(store):
    bad = [lambda job: Ended(job, Outcome("failed", "NaN"))]
    runner = Scripted({0: [bad]})
    drive(store, runner)
    assert states(store)[0] == "failed" and runner.order.count((0, 1)) == 1
    assert (0, 2) not in runner.order


def test_a_late_result_is_a_further_attempt(store):
    """A worker that was given up comes back while, and after, another one runs its trial."""
    first = []

    def given_up(job):
        first.append(job)
        return Lost(job, "no progress")

    def late(job):
        return Ended(first[0], sample_outcome(0.25))

    drive(store, Scripted({0: [[given_up], [late, ok, late]]}, slots=1))
    assert tries(store)[:4] == [(0, 1, "lost"), (0, 2, "ok"), (0, 3, "late"), (0, 4, "late")]
    trial = store.trials("study")[0]
    assert (trial.state, trial.score) == ("ok", 0.75)


def test_trials_of_one_ranking_wait_only_until_it_is_made(store):
    ranked = Ranking((0.5,), "s3pet", 0)
    merge_same_position = []

    class Busy(Scripted):
        def wait(self, handle):
            merge_same_position.append(len(self.open))
            super().wait(handle)
            self.open = self.open[1:] + self.open[:1]  # the first one trains on behind the others

    runner = Busy({0: [[lambda job: Ranked(job, "key", ranked)]]}, slots=3)
    drive(store, runner, shared=lambda trial: "one ranking")
    assert merge_same_position[:2] == [1, 3]
    assert states(store) == ["ok"] * 3
    assert store.ranking("key") == ranked


def test_a_ranking_that_is_stored_already_holds_nobody_up(store):
    """Who finds it says so, and the others start beside it."""
    merge_same_position = []

    class Busy(Scripted):
        def wait(self, handle):
            merge_same_position.append(len(self.open))
            super().wait(handle)

    ranked = Ranking((0.5,), "s3pet", 0)
    found = [
        lambda job: Ranked(job, "key", ranked),
        step,
        lambda job: Ended(job, Outcome("failed")),
    ]
    drive(store, Busy({0: [found]}, slots=3), shared=lambda trial: "one ranking")
    assert merge_same_position == [1, 2, 1], (
        "the other two run together, though the first one failed"
    )


def test_progress_renews_the_attempts_deadline(store):
    deadlines = []

    def look(job):
        deadlines.append(store.attempts("study")[0].deadline)
        return step(job)

    runner = Scripted({0: [[look, step, look, ok]]}, slots=1)
    runner.now = iter(range(0, 10_000, 20)).__next__
    drive(store, runner)
    assert deadlines[1] > deadlines[0]


def test_a_driver_that_is_asked_to_stop_cancels_and_queues_again(store):
    class Impatient(StudyCallbacks):
        def finished(self, trial, outcome):
            store.ask_to_stop("study")

    runner = Scripted({1: [[step, step, ok]]}, slots=1, step=5.0)
    with pytest.raises(Stopped, match="asked to stop"):
        drive(store, runner, Impatient())
    store.release("study")
    assert states(store)[0] == "ok" and set(states(store)[1:]) == {"queued"}
    drive(store, Scripted({}))
    assert states(store) == ["ok"] * 3
