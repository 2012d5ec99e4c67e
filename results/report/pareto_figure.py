"""The plot of a study's front."""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsearch.results.answers import ScoredTrial
from sparsearch.results.records import Best, StudyRecord
from sparsearch.results.report.summary import budget_name, spread, summarise

if TYPE_CHECKING:
    from plotly.graph_objects import Figure
from sparsearch.results.report.html import COLORS, counts_axis, dress, figure_json, write_page

__all__ = [
    "pareto_figure",
    "write_pareto_plot",
]


def pareto_figure(
    study: StudyRecord, trials: Sequence[ScoredTrial], front: Sequence[Best]
) -> Figure:
    """Validation score against trainable parameters: trials, front and references.

    Args:
        study: The study.
        trials: All of its trials.
        front: Those that no other one beats.
    """
    from plotly.graph_objects import Figure, Scatter

    done = [t for t in trials if t.state == "ok" and t.score is not None]
    budgeted = [t for t in done if t.structure is not None]
    figure = Figure()
    figure.add_trace(
        Scatter(
            x=[b.trainable_params for b in front],
            y=[b.score for b in front],
            mode="lines",
            name="front",
            line={"color": "#2b2f36", "width": 1.5, "shape": "hv"},
            hoverinfo="skip",
        )
    )
    strategies = list(dict.fromkeys(t.strategy for t in budgeted))
    for number, strategy in enumerate(strategies):
        color = COLORS[number % len(COLORS)]
        figure.add_trace(_points([t for t in budgeted if t.strategy == strategy], color))
    means = {
        row: spread(t.score for t in done if t.strategy == row and t.score is not None).mean
        for row in dict.fromkeys(t.strategy for t in done if t.budget is None)
    }
    window = _window([t.score for t in budgeted if t.score is not None], list(means.values()))
    for strategy, mean in means.items():
        _reference(figure, strategy, mean, window)
    counts = f"{len(budgeted)} structures, {len(front)} on the front"
    dress(
        figure,
        f"{study.name}: {study.metric} against trainable parameters",
        f"{study.task} on {study.model} · {counts}",
    )
    title = "trainable parameters (head not counted)"
    figure.update_xaxes(title_text=title, **counts_axis(figure))
    figure.update_yaxes(title_text=f"{study.metric} (validation)", range=window)
    figure.update_layout(width=1040, height=660, margin={"t": 110})
    return figure


def _window(scores: Sequence[float], references: Sequence[float]) -> tuple[float, float]:
    """Scores to show: all structures, and references near enough not to squeeze them."""
    inside = list(scores) or list(references) or [0.0, 1.0]
    reach = 2 * max(max(inside) - min(inside), 0.01)
    low, high = min(inside) - reach, max(inside) + reach
    inside += [mean for mean in references if low <= mean <= high]
    air = 0.08 * (max(inside) - min(inside)) or 0.01
    return min(inside) - air, max(inside) + air


def _points(trials: Sequence[ScoredTrial], color: str) -> Any:
    """All trials of one strategy."""
    from plotly.graph_objects import Scatter

    return Scatter(
        x=[t.trainable_params for t in trials],
        y=[t.score for t in trials],
        mode="markers",
        name=trials[0].strategy,
        marker={"size": 11, "color": color, "line": {"width": 1, "color": "white"}},
        customdata=[
            [
                (t.structure or "")[:12],
                t.seed,
                html.escape(budget_name(t.budget)),
                "not measured" if t.test_score is None else f"{t.test_score:.4f}",
                t.stored_bytes,
            ]
            for t in trials
        ],
        hovertemplate=(
            "%{fullData.name}, structure %{customdata[0]}<br>budget %{customdata[2]}, "
            "seed %{customdata[1]}<br>validation %{y:.4f}, test %{customdata[3]}<br>"
            "%{x:,} parameters, %{customdata[4]:,} stored bytes<extra></extra>"
        ),
    )


def _reference(figure: Figure, name: str, score: float, window: tuple[float, float]) -> None:
    """A dashed line across the picture; at the edge a note, where it lies outside."""
    label = {"x": 1.0, "xref": "paper", "xanchor": "right", "showarrow": False}
    if score < window[0]:
        figure.add_annotation(
            **label, y=0, yref="paper", yanchor="bottom", text=f"{name} {score:.4f} \u2193"
        )
    elif score > window[1]:
        figure.add_annotation(
            **label, y=1, yref="paper", yanchor="top", text=f"{name} {score:.4f} \u2191"
        )
    else:
        figure.add_hline(y=score, line={"dash": "dash", "width": 1, "color": "#7a7f87"})
        figure.add_annotation(**label, y=score, yanchor="bottom", text=f"{name} {score:.4f}")


def write_pareto_plot(
    study: StudyRecord, trials: Sequence[ScoredTrial], front: Sequence[Best], path: Path
) -> None:
    """Write the picture of a study's trials, see ``pareto_figure``, and under it what they show.

    Raises:
        ExportError: If the file cannot be written.
    """
    figure = figure_json(pareto_figure(study, trials, front))
    summary = summarise(study, trials)
    findings = any(map(summary.findings, summary.budgets))
    shown = {"title": study.name, "figure": figure, "summary": summary, "findings": findings}
    write_page(path, "--plot", "plot.html", **shown)
