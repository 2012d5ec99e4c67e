"""The driver: keeps a runner busy with an outer loop's trials, and alone writes what comes back."""

from __future__ import annotations

from collections.abc import Callable, Hashable

from sparsearch.results.store import Store
from sparsearch.results.values import Trial
from sparsearch.workers.listener import Listener
from sparsearch.workers.outer_loop import OuterLoop
from sparsearch.workers.runners import Ended, Event, Job, Progressed, Runner, Started

__all__ = ["Driver"]

_RENEW_SECONDS = 15.0


class Driver:
    """Runs one study, whose lease it holds, to its end.

    Args:
        store: Where outcomes go.
        study: Its name.
        runner: Executes.
        loop: Proposes.
        listen: Told how it goes.
        shared: What a trial makes that another one would reuse (a ranking), None for nothing: of trials
            with equal ones only one runs at a time.
    """

    def __init__(
        self,
        store: Store,
        study: str,
        runner: Runner,
        loop: OuterLoop,
        listen: Listener,
        shared: Callable[[Trial], Hashable | None],
    ) -> None:
        self.store, self.study, self.runner, self.loop = store, study, runner, loop
        self.listen, self.shared = listen, shared
        self._running: dict[int, Job] = {}
        self._renewed = runner.now()

    def run(self) -> None:
        """Until the outer loop has nothing more and nothing runs."""
        while True:
            while self.runner.free() > 0 and (trial := self.loop.ask(self._may_start)) is not None:
                job = Job(trial)
                self._running[trial.number] = job
                self.runner.submit(job)
            if not self._running:
                return
            self.runner.wait(self._handle)

    def _may_start(self, trial: Trial) -> bool:
        made = self.shared(trial)
        return made is None or all(self.shared(j.trial) != made for j in self._running.values())

    def _handle(self, event: Event) -> None:
        trial = event.job.trial
        if isinstance(event, Started):
            self.store.start(self.study, trial.number)
            self.listen.started(trial)
        elif isinstance(event, Progressed):
            self.listen.progressed(trial, event.phase, event.done, event.total, event.score)
            if event.score is not None and not self.loop.goes_on(
                trial, event.done, event.total, event.score
            ):
                self.runner.cancel(event.job)
        elif isinstance(event, Ended):
            del self._running[trial.number]
            self.store.finish(self.study, trial.number, event.outcome)
            self.loop.tell(trial, event.outcome)
            self.listen.finished(trial, event.outcome)
        if self.runner.now() - self._renewed > _RENEW_SECONDS:
            self.store.renew(self.study)
            self._renewed = self.runner.now()
