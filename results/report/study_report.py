"""The report of a study: one HTML file for a colleague."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sparsearch.results.records import Best, StudyRecord, TrialRecord
from sparsearch.results.report.html import figure_json, render, write_page
from sparsearch.results.report.structure_map import structure_figure
from sparsearch.results.report.study_figures import curves_figure, means_figure
from sparsearch.results.report.summary import summarise
from sparsearch.results.source import StudySource

__all__ = ["report_page", "write_report"]

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
    trials = store.trials(study.name)
    summary = summarise(study, trials)
    curves = curves_figure(summary, trials)
    best = _best_of_budgets(store, study, [b.best for b in summary.budgets])
    return {
        "title": study.name,
        "study": study,
        "seeds": sorted({t.seed for t in trials}),
        "seconds": sum(t.seconds or 0.0 for t in trials),
        "summary": summary,
        "means": figure_json(means_figure(summary, trials)),
        "curves": None if curves is None else figure_json(curves),
        "best": best,
        "more_maps": max(0, len(best) - _MOST_MAPS),
        "maps": [(b, figure_json(structure_figure(b))) for b in best[:_MOST_MAPS]],
        "failures": summary.unsuccessful[:_MOST_FAILURES],
        "more_failures": max(0, len(summary.unsuccessful) - _MOST_FAILURES),
    }


def _best_of_budgets(
    store: StudySource, study: StudyRecord, best: Sequence[TrialRecord | None]
) -> list[Best]:
    """The structures of those trials, each once."""
    hashes = dict.fromkeys(t.structure for t in best if t is not None and t.structure is not None)
    return [store.find_structure(name, study.name) for name in hashes]
