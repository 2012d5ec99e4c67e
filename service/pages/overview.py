"""Studies, and the best structure of each task."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse

from sparsearch.errors import NotFoundError
from sparsearch.results.records import BestQuery, StudyRecord
from sparsearch.results.store.reader import StoreReader
from sparsearch.service.launches.folder import Launch, launches
from sparsearch.service.launches.of_study import is_last_word
from sparsearch.service.pages.rendering import page
from sparsearch.service.routes.asked import Cursor, TheStore

__all__ = ["router", "state_of"]

router = APIRouter(include_in_schema=False)

_ROWS = 50


def state_of(study: StudyRecord, launch: Launch | None, store: StoreReader) -> str:
    """What a study does: where trials are left and nobody runs them, its launch may know why."""
    if study.state == "unfinished" and launch is not None and is_last_word(launch, study, store):
        state = launch.state
        return study.state if state == "finished" else state
    return study.state


def _not_begun(store: StoreReader, launched: Mapping[str, str]) -> list[tuple[str, str]]:
    """Launches of which the database knows nothing: they wait, load, or ended before they began."""
    found = []
    for name, state in launched.items():
        try:
            begun = state == "finished" or store.find_study(name).name == name
        except NotFoundError:
            begun = False
        if not begun:
            found.append((name, state))
    return found


@router.get("/", response_class=HTMLResponse)
def studies(request: Request, store: TheStore, cursor: Cursor = None) -> Any:
    """List the studies, the youngest first, and launches that have not begun."""
    found = store.studies(after=cursor, limit=_ROWS, youngest_first=True)
    launched = {launch.name: launch for launch in launches(request.app.state.settings.launches)}
    known = {study.name for study in found}
    others = {name: launch.state for name, launch in launched.items() if name not in known}
    return page(
        request,
        "studies.html",
        title="Studies",
        studies=[(study, state_of(study, launched.get(study.name), store)) for study in found],
        not_begun=[] if cursor else _not_begun(store, others),
        best=() if cursor else store.best_of_each_task(BestQuery())[:20],
        next=found[-1].name if len(found) == _ROWS else None,
    )
