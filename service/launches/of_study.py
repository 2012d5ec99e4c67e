"""What a launch still says of a study, which may have gone on without it, or be another one of that name."""

from __future__ import annotations

from sparsearch.results.records import NOT_RUN, StudyRecord
from sparsearch.results.store.reader import StoreReader
from sparsearch.service.launches.folder import Launch

__all__ = ["is_last_word", "is_of_another", "tells_all", "told_until"]


def is_of_another(launch: Launch, study: StudyRecord) -> bool:
    """Whether a launch ran a study that has been deleted, whose name this one has now, and is not asked to run it."""
    waits = launch.state in ("queued", "running")
    return launch.begun is not None and not launch.ran(study) and not waits


def is_last_word(launch: Launch, study: StudyRecord, store: StoreReader) -> bool:
    """Whether nothing has happened to a study since its launch ended, if it has."""
    ended = launch.ended_at
    if ended is None:
        return True
    if study.created_at > ended:
        return False
    times = [trial.finished_at for trial in store.progress(study.name).finished]
    return all(time is None or time <= ended for time in times)


def tells_all(launch: Launch, study: StudyRecord | None, store: StoreReader) -> bool:
    """Whether the events of a launch are those of a study: it is under way, or all that has finished is among them.

    Args:
        launch: Of the study's name.
        study: None where the database has none.
        store: The database.
    """
    if launch.state in ("queued", "running"):
        return True
    if study is None:
        return launch.begun is None  # else it was deleted
    now = store.progress(study.name)
    if now.running or not launch.ran(study):
        return False
    told = _finished(launch, study)
    return all(told.get(trial.number) == trial.state for trial in now.finished)


def told_until(
    launch: Launch, study: StudyRecord | None, place: int, store: StoreReader
) -> set[int]:
    """The trials of a study that whoever read a launch's events up to a place was told, as they are now."""
    if study is None or not launch.ran(study):
        return set()
    told = _finished(launch, study, place)
    finished = store.progress(study.name).finished
    return {t.number for t in finished if t.state not in NOT_RUN and told.get(t.number) == t.state}


def _finished(launch: Launch, study: StudyRecord, until: int | None = None) -> dict[int, str]:
    """The state of each trial of a study that a launch says has finished."""
    return {
        event["trial"]: event["state"]
        for place, event in launch.events_after(launch.begins(study))
        if event["event"] == "finished" and (until is None or place <= until)
    }
