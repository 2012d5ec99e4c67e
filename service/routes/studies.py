"""Studies, and their trials, fronts and summaries."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path as FilePath
from typing import Annotated, Any
from urllib.parse import quote

from fastapi import APIRouter, Depends, Header, Path, Query, Request
from fastapi.responses import HTMLResponse, StreamingResponse
from starlette.concurrency import run_in_threadpool

from sparsearch.documents import plain
from sparsearch.errors import LeaseError, NotFoundError
from sparsearch.results.report.study_report import report_page
from sparsearch.results.report.summary import summarise
from sparsearch.results.store.store import Store
from sparsearch.service.access import may_run
from sparsearch.service.audit import note
from sparsearch.service.launches.folder import Launch, find_launch
from sparsearch.service.launches.of_study import tells_all, told_until
from sparsearch.service.limits.streams import EventStream
from sparsearch.service.models import (
    BestModel,
    Page,
    StudyDetailModel,
    StudyModel,
    SummaryModel,
    TrialModel,
)
from sparsearch.service.problems import Problem
from sparsearch.service.routes.asked import NO_NUL, Cursor, Limit, TheStore, page
from sparsearch.service.routes.launches import launch_events, place_behind
from sparsearch.service.study_events import study_events, told_by

__all__ = ["router"]

router = APIRouter(prefix="/studies", tags=["studies"])

Study = Annotated[
    str, Path(max_length=200, pattern=NO_NUL, description="Name of a study, or a unique prefix.")
]


@router.get("", response_model=Page[StudyModel])
def list_studies(store: TheStore, cursor: Cursor = None, limit: Limit = 100) -> Any:
    """List the studies, oldest first; the cursor is the name of a study."""
    found = store.studies(after=cursor, limit=limit)
    return page([plain(study.as_dict()) for study in found], limit, "name")


@router.get("/{study}", response_model=StudyDetailModel)
def show_study(study: Study, store: TheStore) -> Any:
    """Show one study and the settings that it was launched with."""
    found = store.find_study(study)
    return plain(found.as_dict() | {"settings": found.settings})


@router.delete("/{study}", status_code=204, dependencies=[Depends(may_run)])
def delete_study(
    study: Study,
    confirm: Annotated[str, Query(max_length=200, description="The study's name once more.")],
    request: Request,
) -> None:
    """Delete a study with its trials and weights, and structures that no other study has."""
    settings = request.app.state.settings
    if confirm != study:
        raise Problem(f"confirm={confirm!r} is not the name of the study", status=422)
    launch = None
    with suppress(NotFoundError):
        launch = find_launch(settings.launches, study)
    if launch is not None and launch.state in ("queued", "running"):
        raise LeaseError(f"study {study!r} is {launch.state}", "stop it first")
    with Store.open(settings.db, create=True) as store:
        try:
            store.delete_study(study)
        except NotFoundError:
            if launch is None:
                raise  # else it was launched, and has not begun
    if launch is not None:
        launch.forget()
    note(request, "delete", study)


@router.get(
    "/{study}/events",
    response_class=StreamingResponse,
    responses={200: {"content": {"text/event-stream": {}}}},
)
async def events(
    study: Study,
    store: TheStore,
    request: Request,
    last_event_id: Annotated[str | None, Header(max_length=4000)] = None,
) -> Any:
    """Watch a study, wherever it was launched: the events of its launch, or its trials as they finish."""
    state, told = request.app.state, told_by(last_event_id or "t")
    if not last_event_id or told is None:
        asked = (study, last_event_id or "0", store, state.settings.launches)
        launch, place, told = await run_in_threadpool(_source, *asked)
        if launch is not None:
            return launch_events(launch, place, request)
    name = (await run_in_threadpool(store.find_study, study)).name
    return EventStream(study_events(state.watches, name, told or set()), state.streams)


def _source(
    study: str, after: str, store: Store, root: FilePath
) -> tuple[Launch | None, int, set[int]]:
    """The launch that tells of a study and the place behind an id; where none does, the trials that were told.

    Raises:
        NotFoundError: If there is no such study, and none was launched here.
        Problem: If it is no id.
    """
    launch = record = None
    with suppress(NotFoundError):
        launch = find_launch(root, study)
    try:
        record = store.find_study(study)
    except NotFoundError:
        if launch is None:
            raise
    if launch is None and record is not None:
        with suppress(NotFoundError):
            launch = find_launch(root, record.name)
    if launch is None:
        if after != "0":
            raise Problem(f"Last-Event-ID {after!r} is no id of an event", status=422)
        return None, 0, set()
    if record is not None and record.name != launch.name:
        record = None  # its name only begins so
    place = place_behind(launch, after)
    if tells_all(launch, record, store):
        return launch, max(place, launch.begins(record)), set()
    return None, 0, told_until(launch, record, place, store)


@router.get("/{study}/trials", response_model=Page[TrialModel])
def list_trials(study: Study, store: TheStore, cursor: Cursor = None, limit: Limit = 100) -> Any:
    """List the trials of a study by number; the cursor is the number of a trial."""
    if cursor is not None and not (cursor.isascii() and cursor.isdecimal() and len(cursor) < 10):
        raise Problem(f"cursor {cursor[:40]!r} is no number of a trial", status=422)
    after = -1 if cursor is None else int(cursor)
    found = store.trials(study, after=after, limit=limit)
    if not found:
        return page([], limit, "number")
    numbers = range(found[0].number, found[-1].number + 1)
    attempts = store.attempts(found[0].study, numbers)
    return page([plain(trial.as_dict(attempts)) for trial in found], limit, "number")


@router.get("/{study}/pareto", response_model=list[BestModel])
def list_front(study: Study, store: TheStore) -> Any:
    """List the structures of a study that no other one beats."""
    return [plain(best.as_dict()) for best in store.pareto(study)]


@router.get("/{study}/summary", response_model=SummaryModel)
def study_summary(study: Study, store: TheStore) -> Any:
    """Compare strategies at each budget: mean and spread over seeds, paired intervals, a verdict."""
    found = store.find_study(study)
    return plain(summarise(found, store.trials(found.name)).as_dict())


@router.get("/{study}/report", response_class=HTMLResponse)
def study_report(study: Study, store: TheStore) -> Any:
    """Download a study as one HTML file, to keep or to send on."""
    name = store.find_study(study).name
    disposition = f"attachment; filename*=UTF-8''{quote(name, safe='')}.html"
    return HTMLResponse(report_page(store, name), headers={"content-disposition": disposition})
