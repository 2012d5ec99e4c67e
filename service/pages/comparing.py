"""Side by side: two structures, the best structures of two tasks, or two studies."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.responses import HTMLResponse

from sparsearch.errors import NotFoundError
from sparsearch.results.records import Best
from sparsearch.results.report.difference import compare_structures
from sparsearch.results.report.structure_map import structure_map
from sparsearch.results.report.summary import StrategySummary
from sparsearch.results.store.reader import StoreReader
from sparsearch.service.pages.rendering import page
from sparsearch.service.pages.study import Views
from sparsearch.service.pages.study_view import StudyView, StudyViews
from sparsearch.service.routes.asked import NO_NUL, OfStudy, TheStore

__all__ = ["router"]

router = APIRouter(include_in_schema=False)

_LISTED = 200

Side = Annotated[str | None, Query(max_length=200, pattern=NO_NUL)]


@router.get("/compare", response_class=HTMLResponse)
def compare(
    request: Request, store: TheStore, views: Views, first: Side = None, second: Side = None,
    study: OfStudy = None,
) -> Any:  # fmt: skip
    """Compare what two names stand for: studies, tasks or structures, whichever there are."""
    names = list(store.study_names(_LISTED))
    tasks = sorted({task for tasks in store.models().values() for task in tasks})
    shared: dict[str, Any] = {
        "title": "Compare",
        "first": first,
        "second": second,
        "names": names,
        "tasks": tasks,
    }
    if not first or not second:
        return page(request, "compare.html", kind=None, **shared)
    both = [view for name in (first, second) if (view := _view(views, name)) is not None]
    if len(both) == 2:
        return page(
            request, "compare.html", kind="studies", views=both, rows=_rows(both), **shared
        )
    best = [_structure(store, name, study, tasks) for name in (first, second)]
    return page(
        request,
        "compare.html",
        kind="structures",
        best=best,
        maps=[structure_map(b.structure) for b in best],
        difference=compare_structures(best[0].structure, best[1].structure),
        **shared,
    )


def _view(views: StudyViews, name: str) -> StudyView | None:
    """The study of that very name."""
    with suppress(NotFoundError):
        view = views.of(name)
        return view if view.study.name == name else None
    return None


def _structure(store: StoreReader, name: str, study: str | None, tasks: Sequence[str]) -> Best:
    """The best structure of a task, or of that hash."""
    best = store.best(task=name) if name in tasks else None
    if best is not None:
        return best
    try:
        return store.find_structure(name, study)
    except NotFoundError:
        if study is None:
            raise
        return store.find_structure(name)  # the other one may be of another study


def _rows(
    views: Sequence[StudyView],
) -> list[tuple[str, str, list[StrategySummary | None]]]:
    """Budget, strategy, and what each study has there."""
    found = [
        {
            (budget.name, row.strategy): row
            for budget in view.summary.budgets
            for row in budget.strategies
        }
        | {("none", row.strategy): row for row in view.summary.references}
        for view in views
    ]
    keys = dict.fromkeys(key for side in found for key in side)
    return [(budget, strategy, [side.get((budget, strategy)) for side in found])
            for budget, strategy in keys]  # fmt: skip
