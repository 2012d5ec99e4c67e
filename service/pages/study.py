"""A study: scores over seeds, intervals, the best structures, progress, trials, logs."""

from __future__ import annotations

from contextlib import suppress
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path, Query, Request
from fastapi.responses import HTMLResponse, Response

from sparsearch.errors import NotFoundError
from sparsearch.results.records import StudyRecord
from sparsearch.results.report.study_figures import telling_axes
from sparsearch.results.report.study_report import best_of_budgets
from sparsearch.results.store.reader import StoreReader
from sparsearch.service.json_lines import now
from sparsearch.service.launches.folder import End, Launch, find_launch
from sparsearch.service.launches.of_study import is_last_word, is_of_another
from sparsearch.service.pages.overview import state_of
from sparsearch.service.pages.rendering import page
from sparsearch.service.pages.study_view import StudyViews
from sparsearch.service.routes.asked import NO_NUL, TheStore

__all__ = ["Study", "Views", "router"]

router = APIRouter(prefix="/studies", include_in_schema=False)

_ROWS = 100
_MOST_FAILURES = 20
_TAIL = 65_536
"""Bytes of events that a page reads anew: they tell what is under way."""

Study = Annotated[str, Path(max_length=200, pattern=NO_NUL)]
Number = Annotated[int, Path(ge=0, lt=10**9)]
After = Annotated[int, Query(ge=-1, lt=10**9)]


def _views(request: Request) -> StudyViews:
    views: StudyViews = request.app.state.views
    return views


Views = Annotated[StudyViews, Depends(_views)]


def _launch_of(request: Request, name: str) -> Launch | None:
    with suppress(NotFoundError):
        return find_launch(request.app.state.settings.launches, name)
    return None


def _shown(launch: Launch | None, study: StudyRecord | None, asked_at: str) -> dict[str, Any]:
    """What a page needs to go on watching a launch: events since it was asked for are news to it."""
    if launch is None:
        return {"launch": None, "rendered": asked_at}
    events_from = max(launch.tail(_TAIL), launch.begins(study))
    return {"launch": launch.as_dict(), "events_from": events_from, "rendered": asked_at}


def _failure(launch: Launch | None, study: StudyRecord, store: StoreReader) -> End | None:
    """Why a launch failed, unless the study went on since."""
    end = None if launch is None else launch.end
    if launch is None or end is None or not end.code:
        return None
    return end if is_last_word(launch, study, store) else None


@router.get("/{study}", response_class=HTMLResponse)
def study(study: Study, request: Request, views: Views) -> Any:
    """Show a study, also one that was launched and has not begun."""
    asked_at = now()
    try:
        view = views.of(study)
    except NotFoundError:
        launch = _launch_of(request, study)
        if launch is None:
            raise
        return page(
            request, "launched.html", title=study, name=study, state=launch.state,
            **_shown(launch, None, asked_at),
        )  # fmt: skip
    launch = _launch_of(request, view.study.name)
    if launch is not None and is_of_another(launch, view.study):
        launch = None
    return page(
        request,
        "study.html",
        title=view.study.name,
        study=view.study,
        summary=view.summary,
        seeds=sorted({t.seed for t in view.trials}),
        seconds=sum(t.seconds or 0.0 for t in view.trials),
        axes=telling_axes(view.summary),
        best=best_of_budgets(views.store, view.summary),
        curves=any(len(t.history) > 1 for t in view.trials),
        **_shown(launch, view.study, asked_at),
        state=state_of(view.study, launch, views.store),
        failure=_failure(launch, view.study, views.store),
        most_failures=_MOST_FAILURES,
    )


@router.get("/{study}/trials", response_class=HTMLResponse)
def trials(study: Study, request: Request, store: TheStore, after: After = -1) -> Any:
    """List the trials of a study, some at a time."""
    record = store.find_study(study)
    found = store.trials(record.name, after=after, limit=_ROWS)
    following = found[-1].number if len(found) == _ROWS else None
    return page(
        request, "trials.html", title=f"trials of {record.name}", study=record, trials=found,
        after=after, next=following, rows=_ROWS,
    )  # fmt: skip


@router.get("/{study}/trials/{number}", response_class=HTMLResponse)
def trial(study: Study, number: Number, request: Request, store: TheStore) -> Any:
    """Show one trial: what it reached, how it went, what was tried."""
    record = store.find_study(study)
    found = store.trials(record.name, after=number - 1, limit=1)
    if not found or found[0].number != number:
        raise NotFoundError(f"study {record.name!r} has no trial {number}")
    numbers = range(number, number + 1)
    key = found[0].ranking_key
    ranking = None if key is None else store.ranking(key)
    return page(
        request, "trial.html", title=f"{record.name}, trial {number}", study=record,
        trial=found[0], attempts=store.attempts(record.name, numbers), 
        traced=ranking is not None and ranking.trace is not None,
    )  # fmt: skip


@router.get("/{study}/trials/{number}/section", response_class=HTMLResponse)
def section(study: Study, number: Number, request: Request, views: Views) -> Any:
    """The part of the study's page that a finished trial changes; empty where its budget has none."""
    view = views.of(study)
    place = view.place_of(number)
    if place is None:
        return Response(status_code=204)
    return page(request, "section.html", summary=view.summary, place=place)
