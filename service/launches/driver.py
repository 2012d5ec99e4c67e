"""The process of one study: runs it, tells events, notes the end.

SPARSEARCH_DB=URL python -m sparsearch.service.launches.driver FOLDER
"""

from __future__ import annotations

import os
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from filelock import Timeout

from sparsearch.errors import SparsearchError, Stopped
from sparsearch.results.answers import failure_of
from sparsearch.results.records import FINISHED, Outcome, Trial, TrialRecord
from sparsearch.results.store.store import Store
from sparsearch.search.tasks.data_summary import DataSummary
from sparsearch.service.launches.folder import STOPPED, End, Launch
from sparsearch.workers.callbacks import StudyCallbacks
from sparsearch.workers.preflight import Preflight
from sparsearch.workers.study import run

__all__ = ["EventWriter", "main"]

_LOCK_SECONDS = 10.0
_PROGRESS_SECONDS = 1.0


class EventWriter(StudyCallbacks):
    """Appends what a driver tells to the events of a launch, steps of a trial once a second.

    Args:
        launch: Where to.
        db: The database, which knows the study.
    """

    def __init__(self, launch: Launch, db: str) -> None:
        self.launch, self.db = launch, db
        self._told: dict[int, float] = {}

    def checked(self, preflight: Preflight) -> None:
        """The study is valid."""
        self.launch.tell("checked", checked=preflight.summary.as_dict())

    def loaded(self, data: DataSummary) -> None:
        """The task's data is read."""
        self.launch.tell("loaded", data=asdict(data))

    def opened(
        self, study: str, queued: Sequence[Trial], finished: int, to_propose: int = 0
    ) -> None:
        """The trials still to run are known, and with them the study."""
        with Store.open(self.db, create=False) as store:
            self.launch.begin(store.find_study(study))
        facts = {"queued": len(queued), "finished": finished, "to_propose": to_propose}
        self.launch.tell("opened", study=study, **facts)

    def also_stored(self, study: str, trials: Sequence[TrialRecord]) -> None:
        """Trials of earlier launches stay."""
        finished = sum(t.state in FINISHED for t in trials)
        self.launch.tell("also_stored", study=study, trials=len(trials), finished=finished)

    def started(self, trial: Trial) -> None:
        """A trial begins."""
        budget = None if trial.budget is None else trial.budget.as_dict()
        facts = {"strategy": trial.strategy, "seed": trial.seed, "budget": budget}
        self.launch.tell("started", trial=trial.number, **facts)

    def progressed(
        self, trial: Trial, phase: str, done: int, total: int, score: float | None
    ) -> None:
        """A trial made a step."""
        now = time.monotonic()
        if score is None and now - self._told.get(trial.number, -1e9) < _PROGRESS_SECONDS:
            return
        self._told[trial.number] = now
        facts = {"phase": phase, "done": done, "total": total, "score": score}
        self.launch.tell("progressed", trial=trial.number, **facts)

    def retried(self, trial: Trial, attempt: int, state: str, reason: str) -> None:
        """An attempt came to nothing."""
        facts = {"attempt": attempt, "state": state, "reason": reason[:500]}
        self.launch.tell("retried", trial=trial.number, **facts)

    def finished(self, trial: Trial, outcome: Outcome) -> None:
        """A trial's outcome is stored."""
        self._told.pop(trial.number, None)
        structure = None if outcome.structure is None else outcome.structure.hash
        self.launch.tell(
            "finished",
            trial=trial.number,
            state=outcome.state,
            message=outcome.message[:500],
            score=outcome.score("validation"),
            test_score=outcome.score("test"),
            trainable_params=outcome.trainable_params,
            stored_bytes=outcome.stored_bytes,
            structure=structure,
            seconds=outcome.seconds,
        )


def _run(launch: Launch, db: str) -> End:
    """Run the study; whatever goes wrong is how it ended."""
    try:
        study = run(launch.request["study"], db, listener=EventWriter(launch, db)).name
        with Store.open(db, create=False) as store:
            if failure := failure_of(study, store.trials(study)):
                raise failure
    except Stopped as error:
        return End(STOPPED, error.message, error.hint)
    except SparsearchError as error:
        return End(error.exit_code, error.message, error.hint)
    except Exception as error:  # noqa: BLE001 - the log has the traceback
        traceback.print_exc()
        return End(1, f"unexpected {type(error).__name__}: {error}", "the log has the traceback")
    return End(0)


def main() -> int:
    """Run the study of the folder that the command line names, unless another process does.

    Returns:
        The exit code.
    """
    launch = Launch(Path(sys.argv[1]))
    try:
        with launch.lock.acquire(timeout=_LOCK_SECONDS):
            if launch.end is not None or launch.stop_asked:
                return 0
            end = _run(launch, os.environ["SPARSEARCH_DB"])
            if end.code != 0:
                print(SparsearchError(end.message, end.hint), file=sys.stderr)
            launch.finish(end)
            launch.tell("ended", code=end.code, message=end.message, hint=end.hint)
            return end.code
    except Timeout:
        return 0


if __name__ == "__main__":
    sys.exit(main())
