"""The report of a study: one HTML file for a colleague."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sparsearch.results.records import Best
from sparsearch.results.report.html import figure_json, render, write_page
from sparsearch.results.report.structure_map import structure_map
from sparsearch.results.report.study_figures import (
    curves_figure,
    intervals_figure,
    scores_figure,
    telling_axes,
)
from sparsearch.results.report.summary import StudySummary, summarise
from sparsearch.results.source import StudySource

__all__ = ["best_of_budgets", "report_page", "write_report"]

_MOST_FAILURES = 50
_MOST_MAPS = 6


def report_page(store: StudySource, study: str) -> str:
    """A study as one page: state, scores over seeds, intervals against rivals, the best structures.

    Args:
        store: Where it is.
        study: Its name, or a unique prefix of it.

    Raises:
        NotFoundError: If there is no such study.
    """
    return render("report.html", **_values(store, study))


def write_report(store: StudySource, study: str, path: Path) -> None:
    """Write that page, see ``report_page``.

    Raises:
        NotFoundError: If there is no such study.
        ExportError: If the file cannot be written.
    """
    write_page(path, "--out", "report.html", **_values(store, study))


def _values(store: StudySource, name: str) -> dict[str, Any]:
    study = store.find_study(name)
    trials = store.scores(study.name)
    summary = summarise(study, trials)
    intervals, curves = intervals_figure(summary), curves_figure(summary, trials)
    best = best_of_budgets(store, summary)
    maps = list({b.structure.hash: b for _, b in best}.values())
    scores = [
        (axis, scores_figure(summary, axis, trials if axis == "parameters" else ()))
        for axis in telling_axes(summary)
    ]
    return {
        "title": study.name,
        "study": study,
        "seeds": sorted({t.seed for t in trials}),
        "seconds": sum(t.seconds or 0.0 for t in trials),
        "summary": summary,
        "scores": [(axis, figure_json(figure)) for axis, figure in scores],
        "intervals": None if intervals is None else figure_json(intervals),
        "curves": None if curves is None else figure_json(curves),
        "best": best,
        "maps": [(b, structure_map(b.structure)) for b in maps[:_MOST_MAPS]],
        "more_maps": max(0, len(maps) - _MOST_MAPS),
        "most_failures": _MOST_FAILURES,
    }


def best_of_budgets(store: StudySource, summary: StudySummary) -> list[tuple[str, Best]]:
    """The best structure of each budget, with the budget's name.

    Args:
        store: Where the structures are.
        summary: Of the study.
    """
    best = [(budget.name, budget.best.number) for budget in summary.budgets if budget.best]
    found = store.structures_of(summary.study, [number for _, number in best])
    return [(name, one) for (name, _), one in zip(best, found, strict=True)]
