"""A study that a service runs, shown as one that runs here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sparsearch.cli.progress import StudyProgress
from sparsearch.results.records import Measurement, Outcome, Trial
from sparsearch.search.tasks.data_summary import DataSummary
from sparsearch.spaces.budget import Budget
from sparsearch.workers.preflight_summary import PreflightSummary

__all__ = ["FollowedStudy"]


class FollowedStudy:
    """Hands the events of a launched study on to the progress of a local one.

    Args:
        progress: What shows them.
    """

    def __init__(self, progress: StudyProgress) -> None:
        self.progress = progress
        self._started: dict[int, Trial] = {}
        self._known: set[str] = set()

    def tell(self, event: str, facts: Mapping[str, Any]) -> None:
        """Show one event; a driver that was started again tells of model and data once more, which is not shown."""
        again, progress = event in self._known, self.progress
        self._known.add(event)
        match event:
            case "checked" if not again:
                progress.show_checked(PreflightSummary.from_dict(facts["checked"]))
            case "loaded" if not again:
                progress.loaded(DataSummary.from_dict(facts["data"]))
            case "opened":
                left = facts["queued"] + facts["to_propose"]
                progress.show_opened(facts["study"], left, facts["finished"])
            case "also_stored":
                progress.console.print(
                    f"it also has {facts['trials']} trials that this does not ask for"
                )
            case "started":
                self._start(facts)
            case "progressed" | "retried" | "finished" if facts["trial"] in self._started:
                self._go_on(event, self._started[facts["trial"]], facts)

    def _start(self, facts: Mapping[str, Any]) -> None:
        budget = None if facts["budget"] is None else Budget(**facts["budget"])
        trial = Trial(facts["trial"], facts["strategy"], budget, facts["seed"])
        self._started[trial.number] = trial
        self.progress.started(trial)

    def _go_on(self, event: str, trial: Trial, facts: Mapping[str, Any]) -> None:
        if event == "progressed":
            step = (facts[key] for key in ("phase", "done", "total", "score"))
            self.progress.progressed(trial, *step)
        elif event == "retried":
            self.progress.retried(trial, facts["attempt"], facts["state"], facts["reason"])
        else:
            self.progress.finished(trial, _outcome(facts))


def _outcome(facts: Mapping[str, Any]) -> Outcome:
    """What of an outcome is shown."""
    scores = (("validation", facts["score"]), ("test", facts["test_score"]))
    return Outcome(
        facts["state"],
        facts["message"],
        tuple(Measurement("score", split, s) for split, s in scores if s is not None),  # type: ignore[arg-type]
        trainable_params=facts["trainable_params"],
        stored_bytes=facts["stored_bytes"],
        seconds=facts["seconds"],
    )
