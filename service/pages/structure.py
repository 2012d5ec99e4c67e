"""A structure: where it puts what, what it costs, and how to have it."""

from __future__ import annotations

import math
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse

from sparsearch.config.formats import ExportFormat
from sparsearch.results.report.structure_map import structure_map
from sparsearch.service.pages.rendering import page
from sparsearch.service.pages.study import Views
from sparsearch.service.routes.asked import OfStudy, TheStore
from sparsearch.service.routes.structures import Hash

__all__ = ["router"]

router = APIRouter(prefix="/structures", include_in_schema=False)


@router.get("/{structure}", response_class=HTMLResponse)
def structure(
    structure: Hash, request: Request, store: TheStore, views: Views, study: OfStudy = None
) -> Any:
    """Show a structure, with rivals of its budget to compare it with."""
    best = store.find_structure(structure, study)
    view = views.of(best.study)
    rivals = {
        t.strategy: t.structure
        for t in sorted(view.trials, key=lambda t: -math.inf if t.score is None else t.score)
        if t.budget == best.budget and t.structure not in (None, best.structure.hash)
    }
    return page(
        request,
        "structure.html",
        title=f"structure {best.structure.hash[:12]}",
        best=best,
        map=structure_map(best.structure),
        formats=[format.value for format in ExportFormat],
        rivals=rivals,
    )
