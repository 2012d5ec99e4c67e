"""The simulated runner: a clock that leaps, failures by rates, and the guide's own outer loop on it."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from sparsearch.results.records import Trial
from sparsearch.results.store.store import Store
from sparsearch.spaces.budget import Budget
from sparsearch.testing.simulated_runner import Failures, SimulatedRunner, SyntheticFront
from sparsearch.testing.store_conformance import sample_study
from sparsearch.workers.driver import Driver, DriverRules
from sparsearch.workers.execution.events import Ended, Job, Lost, Progressed, Started
from sparsearch.workers.scheduling.scheduler import FixedPlan

ROOT = Path(__file__).parents[3]


def trials(count):
    return tuple(
        Trial(n, "s3pet", Budget(max_trainable_params=1000 + 10 * n), 0) for n in range(count)
    )


def drain(runner, jobs):
    """Every event with its time."""
    events, left = [], list(jobs)
    while True:
        while left and runner.free():
            runner.submit(left.pop(0))
        before = len(events)
        runner.wait(lambda event: events.append((runner.now(), event)))
        if not left and len(events) == before and not runner._pending:
            return events


def test_the_clock_leaps_and_speeds_count():
    runner = SimulatedRunner(SyntheticFront(seconds=100, epochs=2), speeds=[1.0, 2.0])
    events = drain(runner, map(Job, trials(3)))
    ends = {e.job.trial.number: (at, e.outcome) for at, e in events if isinstance(e, Ended)}
    assert {n: at for n, (at, _) in ends.items()} == {0: 200, 1: 100, 2: 200}
    assert [o.seconds for _, o in ends.values()] == [100, 200, 100]
    scores = [e.score for _, e in events if isinstance(e, Progressed) and e.job.trial.number == 0]
    assert scores[0] < scores[1] == ends[0][1].score("validation")
    assert ends[0][1].history == tuple(scores)


def test_failures_come_at_their_rates_and_depend_on_the_job_alone():
    failures = Failures(oom=0.2, nan=0.1, killed=0.2)
    jobs = [Job(t) for t in trials(500)]

    def ends(order):
        runner = SimulatedRunner(SyntheticFront(), [1.0] * 7, failures, seed=3)
        found = {}
        for _, e in drain(runner, order):
            if isinstance(e, Ended):
                found[e.job] = e.outcome.state
            elif isinstance(e, Lost):
                found[e.job] = "lost"
        return found

    found = ends(jobs)
    counts = [list(found.values()).count(s) for s in ("oom", "failed", "lost", "ok")]
    assert sum(counts) == 500
    for count, rate in zip(counts, (0.2, 0.1, 0.2, 0.5), strict=True):
        assert abs(count / 500 - rate) < 0.06
    assert ends(reversed(jobs)) == found
    again = ends([replace(j, attempt=2) for j in jobs])
    assert list(again.values()) != list(found.values()), "another attempt has another fate"


def test_a_cancelled_job_ends_at_once_with_what_it_had():
    runner = SimulatedRunner(SyntheticFront(seconds=100, epochs=5))
    job = Job(trials(1)[0])
    runner.submit(job)
    events = []

    def handle(event):
        events.append(event)
        if isinstance(event, Progressed) and event.done == 2:
            runner.cancel(job)

    while not any(isinstance(e, Ended) for e in events):
        runner.wait(handle)
    assert isinstance(events[0], Started)
    assert runner.now() == 200 and runner.free() == 1
    assert events[-1].outcome.state == "cancelled" and len(events[-1].outcome.history) == 2
    runner.cancel(job)
    runner.wait(lambda event: pytest.fail(f"nothing happens after the end: {event}"))


def test_a_late_result_comes_from_its_own_worker_and_of_no_cancelled_job():
    runner = SimulatedRunner(SyntheticFront(seconds=100, epochs=2), failures=Failures(late=1.0))
    given_up, cancelled = map(Job, trials(2))
    assert [type(e) for _, e in drain(runner, [given_up])] == [Started, Lost, Ended]
    assert (runner.now(), runner.free()) == (200, 1)
    runner.submit(cancelled)
    runner.cancel(cancelled)
    ends = [e for _, e in drain(runner, []) if isinstance(e, Ended)]
    assert [e.outcome.state for e in ends] == ["cancelled"]
    assert runner.free() == 1, "the worker is there once"


def test_a_study_waits_for_workers_that_come_back(tmp_path):
    with Store.open(tmp_path / "study.db", create=True) as store:
        store.begin_study(sample_study(trials=6))
        store.acquire("study")
        runner = SimulatedRunner(SyntheticFront(low=50), failures=Failures(killed=0.4))
        loop = FixedPlan(store.queued("study"))
        Driver(store, "study", runner, loop, DriverRules(max_attempts=9)).run()
        assert {t.state for t in store.trials("study")} == {"ok"}
        assert any(a.state == "lost" for a in store.attempts("study"))


def test_the_guides_outer_loop_runs(tmp_path):
    text = (ROOT / "docs" / "guide" / "outer-loop.md").read_text()
    code = next(b for b in re.findall(r"```python\n(.*?)```", text, re.S) if "class Twice" in b)
    names = {}
    exec(code, names)
    with Store.open(tmp_path / "study.db", create=True) as store:
        spec = sample_study(trials=3)
        spec = replace(spec, trials=tuple(replace(t, seed=0) for t in spec.trials))
        store.begin_study(spec)
        store.acquire("study")
        loop = names["Twice"](store.queued("study"), lambda t: store.add_trial("study", t))
        runner = SimulatedRunner(SyntheticFront(low=50), [1.0, 1.0])
        Driver(store, "study", runner, loop).run()
        found = store.trials("study")
    assert [t.seed for t in found] == [0, 0, 0, 1, 1, 1]
    assert {t.state for t in found} == {"ok"}
