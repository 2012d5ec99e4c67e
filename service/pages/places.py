"""Where the best structures of a backbone put things, over all its studies."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.responses import HTMLResponse

from sparsearch.results.report.structure_map import frequency_map
from sparsearch.service.pages.rendering import page
from sparsearch.service.routes.asked import NO_NUL, TheStore

__all__ = ["router"]

router = APIRouter(include_in_schema=False)

Name = Annotated[str | None, Query(max_length=500, pattern=NO_NUL)]


@router.get("/places", response_class=HTMLResponse)
def places(request: Request, store: TheStore, model: Name = None, task: Name = None) -> Any:
    """Count, at each place, the structures on the fronts of all studies that put something there."""
    models = store.models()
    model = model or next(iter(models), None)
    tasks = models.get(model or "", ())
    found = None if model is None else store.front_placements(model, task or None)
    return page(
        request,
        "places.html",
        title="Places",
        model=model,
        models=list(models),
        task=task,
        tasks=tasks,
        structures=0 if found is None else found.structures,
        map=None if found is None else frequency_map(found),
    )
