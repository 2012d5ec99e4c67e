"""Studies, and the best structure of each task."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse

from sparsearch.results.records import BestQuery, StudyRecord
from sparsearch.service.launches.folder import launches
from sparsearch.service.pages.rendering import page
from sparsearch.service.routes.asked import Cursor, TheStore

__all__ = ["router", "state_of"]

router = APIRouter(include_in_schema=False)

_ROWS = 50


def state_of(study: StudyRecord | None, launch: str | None) -> str:
    """What a study does: of one that was launched here its launch knows more, unless somebody else runs it."""
    if study is not None and (launch is None or study.state in ("running", "finished")):
        return study.state
    return launch or "unfinished"


@router.get("/", response_class=HTMLResponse)
def studies(request: Request, store: TheStore, cursor: Cursor = None) -> Any:
    """List the studies, the youngest first, and what is queued."""
    found = store.studies(after=cursor, limit=_ROWS, youngest_first=True)
    launched = {
        launch.name: launch.state for launch in launches(request.app.state.settings.launches)
    }
    known = {study.name for study in found}
    waiting = (
        [] if cursor else [(n, s) for n, s in launched.items() if s == "queued" and n not in known]
    )
    return page(
        request,
        "studies.html",
        title="Studies",
        studies=[(study, state_of(study, launched.get(study.name))) for study in found],
        waiting=waiting,
        best=() if cursor else store.best_of_each_task(BestQuery())[:20],
        next=found[-1].name if len(found) == _ROWS else None,
    )
