"""The pictures of a study, as JSON for Plotly."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from fastapi import APIRouter, Query
from fastapi.responses import Response

from sparsearch.results.report.study_figures import (
    alpha_figure,
    curves_figure,
    intervals_figure,
    scores_figure,
)
from sparsearch.service.pages.study import Study, Views
from sparsearch.service.problems import Problem
from sparsearch.service.routes.asked import TheStore

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

__all__ = ["router"]

router = APIRouter(prefix="/studies/{study}/figures", include_in_schema=False)

Trial = Annotated[int, Query(ge=0, lt=10**9)]


def _answer(figure: Figure | None) -> Response:
    if figure is None:
        raise Problem("there is nothing to draw yet", status=404)
    return Response(figure.to_json(), media_type="application/json")


@router.get("/scores")
def scores(
    study: Study,
    views: Views,
    axis: Literal["parameters", "flops", "sparsity"] = "parameters",
    single: bool = False,
) -> Any:
    """Means and spreads over seeds, on demand single seeds too."""
    view = views.of(study)
    figure = scores_figure(view.summary, axis, view.trials if single else ())
    for trace in figure.data:
        trace.visible = True
    return _answer(figure)


@router.get("/intervals")
def intervals(study: Study, views: Views) -> Any:
    """Paired intervals against rivals."""
    return _answer(intervals_figure(views.of(study).summary))


@router.get("/alpha")
def alpha(study: Study, trial: Trial, store: TheStore) -> Any:
    """How alpha went in the search of a trial."""
    found = store.trials(study, after=trial - 1, limit=1)
    key = next((t.ranking_key for t in found if t.number == trial), None)
    ranking = None if key is None else store.ranking(key)
    if ranking is None or ranking.trace is None:
        return _answer(None)
    return _answer(alpha_figure(ranking.trace))


@router.get("/curves")
def curves(study: Study, views: Views) -> Any:
    """Learning curves."""
    view = views.of(study)
    return _answer(curves_figure(view.summary, view.trials))
