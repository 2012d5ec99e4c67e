"""The best structure within limits."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query

from sparsearch.config.registry import read_limits
from sparsearch.documents import plain
from sparsearch.results.records import BestQuery
from sparsearch.results.store.reading.advice import nothing_found
from sparsearch.service.models import BestModel
from sparsearch.service.problems import Problem
from sparsearch.service.routes.asked import NO_NUL, OfStudy, TheStore

__all__ = ["router"]

router = APIRouter(tags=["structures"])


@router.get("/best", response_model=list[BestModel])
def find_best(
    store: TheStore,
    study: OfStudy = None,
    model: Annotated[
        str | None, Query(max_length=500, pattern=NO_NUL, description="The backbone.")
    ] = None,
    task: Annotated[
        str | None, Query(max_length=200, pattern=NO_NUL, description="Name or fingerprint.")
    ] = None,
    limit: Annotated[
        list[str] | None,
        Query(max_length=20, description="NAME=VALUE, like max_trainable_params=0.01%."),
    ] = None,
) -> Any:
    """Find the best structure of each task within limits; scores of different tasks do not compare."""
    names = {"study": study, "model": model, "task": task}
    asked = read_limits(limit or (), {k: v for k, v in names.items() if v is not None})
    found = store.best_of_each_task(BestQuery.of(asked))
    if not found:
        nothing = nothing_found(store, asked)
        name = type(nothing).__name__
        raise Problem(nothing.message, nothing.hint, status=404, error=name)
    return [plain(one.as_dict()) for one in found]
