"""The driver: keeps a runner busy with an outer loop's trials, and alone writes what comes back."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field, replace
from typing import Literal

from sparsearch.errors import Stopped
from sparsearch.results.records import Outcome, Trial
from sparsearch.results.store.store import Store
from sparsearch.results.store.writing.lease import LEASE_SECONDS
from sparsearch.search.phases import phase
from sparsearch.workers.callbacks import StudyCallbacks
from sparsearch.workers.execution.events import (
    Ended,
    Event,
    Job,
    Lost,
    Progressed,
    Ranked,
    Started,
)
from sparsearch.workers.execution.runner import Runner
from sparsearch.workers.scheduling.scheduler import Scheduler

__all__ = ["Driver", "DriverRules"]

_RENEW_SECONDS = 15.0
_LOOK_SECONDS = 2.0
_STOP_SECONDS = 30.0


@dataclass(frozen=True)
class DriverRules:
    """How a driver treats trials.

    Attributes:
        listen: Told how it goes.
        shared: Key of the ranking that a trial will make, or None. Trials with the same key wait until the first has
            made it.
        max_attempts: How often a trial is tried, counted over all drivers of the study.
        attempt_seconds: How long an attempt is believed in without progress.
    """

    listen: StudyCallbacks = field(default_factory=StudyCallbacks)
    shared: Callable[[Trial], Hashable | None] = lambda trial: None
    max_attempts: int = 3
    attempt_seconds: float = LEASE_SECONDS


class Driver:
    """Runs one study, whose lease it holds, to its end.

    A trial whose worker is lost, or runs out of memory, is tried again after those that have not run
    yet. What else goes wrong in a trial would go wrong again, and is its outcome at once.

    Args:
        store: Where outcomes go.
        study: Its name.
        runner: Executes.
        loop: Proposes.
        rules: How it treats trials.
    """

    def __init__(
        self,
        store: Store,
        study: str,
        runner: Runner,
        loop: Scheduler,
        rules: DriverRules | None = None,
    ) -> None:
        rules = rules or DriverRules()
        self.store, self.study, self.runner, self.loop = store, study, runner, loop
        self.listen, self.shared = rules.listen, rules.shared
        self.max_attempts, self.attempt_seconds = rules.max_attempts, rules.attempt_seconds
        self._running: dict[int, Job] = {}
        self._making: dict[int, Hashable | None] = {}
        self._again: list[Trial] = []
        self._made: set[Hashable] = set()
        self._progressed: set[int] = set()
        attempts = store.attempts(study)
        self._begun = Counter(a.trial for a in attempts)
        self._spoilt = Counter(a.trial for a in attempts if a.state in ("lost", "oom"))
        self._workers: dict[Job, str] = {}
        self._renewed = self._looked = runner.now()
        self._stopping: float | None = None

    def run(self) -> None:
        """Until the outer loop has nothing more and nothing runs.

        Raises:
            Stopped: If ``ask_to_stop`` was called on the study: what ran is cancelled, to be run again.
            LeaseError: If the lease was lost.
        """
        while True:
            while self._stopping is None and self.runner.free() > 0:
                trial = self._next()
                if trial is None:
                    break
                self._submit(trial)
            # Nothing may run while workers start anew, which take jobs again later.
            waits = self._running or (self._stopping is None and self.runner.free() <= 0)
            if not waits or self._gave_up_waiting():
                break
            self.runner.wait(self._handle)
            self._keep_alive()
        if self._stopping is not None:
            raise Stopped(f"study {self.study!r} was asked to stop; what is finished is stored")

    def _next(self) -> Trial | None:
        """A trial that has not been tried, else one that has."""
        trial = self.loop.ask(self._may_start)
        if trial is None:
            trial = next((t for t in self._again if self._may_start(t)), None)
            if trial is not None:
                self._again.remove(trial)
        return trial

    def _may_start(self, trial: Trial) -> bool:
        made = self.shared(trial)
        return made is None or made in self._made or made not in self._making.values()

    def _submit(self, trial: Trial) -> None:
        self._begun[trial.number] += 1
        job = Job(trial, self._begun[trial.number])
        self._running[trial.number] = job
        self._making[trial.number] = self.shared(trial)
        self.runner.submit(job)

    def _leave(self, number: int) -> None:
        del self._running[number], self._making[number]

    def _handle(self, event: Event) -> None:
        trial = event.job.trial
        if isinstance(event, Ranked):
            with phase("storing"):
                self.store.add_ranking(event.key, event.ranking)
            self._made.add(self._making.get(trial.number))
        elif self._running.get(trial.number) != event.job:
            if isinstance(event, Ended):
                worker = self._workers.get(event.job, "")
                self.store.add_late(self.study, trial.number, worker, event.outcome)
        elif isinstance(event, Started):
            self._workers[event.job] = event.worker
            self.store.start(self.study, trial.number, event.worker, self.attempt_seconds)
            self.listen.started(trial)
        elif isinstance(event, Progressed):
            self._progress(event)
        elif isinstance(event, Lost):
            self._spoil(event.job, "lost", event.reason, Outcome("failed"))
        else:
            self._end(event.job, event.outcome)
        self._keep_alive()

    def _progress(self, event: Progressed) -> None:
        trial = event.job.trial
        self._progressed.add(trial.number)
        self.listen.progressed(trial, event.phase, event.done, event.total, event.score)
        if event.score is not None and not self.loop.goes_on(
            trial, event.done, event.total, event.score
        ):
            self.runner.cancel(event.job)

    def _end(self, job: Job, outcome: Outcome) -> None:
        if self._stopping is not None and outcome.state == "cancelled":
            self._leave(job.trial.number)  # releasing the study queues it again
        elif outcome.state == "oom":
            self._spoil(job, "oom", outcome.message, outcome)
        else:
            self._finish(job.trial, outcome)

    def _spoil(self, job: Job, state: Literal["lost", "oom"], reason: str, final: Outcome) -> None:
        """An attempt came to nothing: try again, or end the trial with a final outcome."""
        number = job.trial.number
        self._spoilt[number] += 1
        if self._spoilt[number] < self.max_attempts:
            self._leave(number)
            self.store.retry(self.study, number, state, reason)
            self._again.append(job.trial)
            self.listen.retried(job.trial, job.attempt, state, reason)
            return
        if state == "lost":
            self.store.retry(self.study, number, state, reason)
        message = f"given up after {self._spoilt[number]} attempts; the last one: {reason}"
        self._finish(job.trial, replace(final, message=message))

    def _finish(self, trial: Trial, outcome: Outcome) -> None:
        self._leave(trial.number)
        with phase("storing"):
            self.store.finish(self.study, trial.number, outcome)
        if outcome.ranking is not None:
            self._made.add(self.shared(trial))
        self.loop.tell(trial, outcome)
        self.listen.finished(trial, outcome)

    def _keep_alive(self) -> None:
        """Renew what is due, and look whether one is asked to stop."""
        now = self.runner.now()
        if now - self._renewed > _RENEW_SECONDS:
            self.store.renew(
                self.study,
                progressed=self._progressed & self._running.keys(),
                attempt_seconds=self.attempt_seconds,
            )
            self._renewed = now
            self._progressed.clear()
        if self._stopping is None and now - self._looked > _LOOK_SECONDS:
            self._looked = now
            if self.store.stop_asked(self.study):
                self._stopping = now
                for job in self._running.values():
                    self.runner.cancel(job)

    def _gave_up_waiting(self) -> bool:
        """Whether a worker takes too long to stop; it is then left to the runner's end."""
        return self._stopping is not None and self.runner.now() - self._stopping > _STOP_SECONDS
