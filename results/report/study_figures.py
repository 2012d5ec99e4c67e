"""Pictures of a whole study: scores against what they cost, and learning curves."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sparsearch.results.answers import ScoredTrial
from sparsearch.results.report.html import COLORS, counts_axis, dress
from sparsearch.results.report.summary import StrategySummary, StudySummary, budget_name, spread
from sparsearch.spaces.ranking import AlphaTrace

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

__all__ = [
    "AXES",
    "Axis",
    "alpha_figure",
    "curves_figure",
    "intervals_figure",
    "scores_figure",
    "telling_axes",
]

_MOST_LINES = 60
_MOST_SINGLE = 3000
"""Single trials of a strategy in a picture; of more than that one of so many is drawn, and the legend says so."""


@dataclass(frozen=True)
class Axis:
    """What scores are drawn against.

    Attributes:
        attribute: Of a trial, and of a strategy's summary.
        title: In words.
        layout: How Plotly draws it; None for counts.
    """

    attribute: str
    title: str
    layout: dict[str, Any] | None = None


AXES = {
    "parameters": Axis("trainable_params", "trainable parameters (head not counted)"),
    "bytes": Axis("stored_bytes", "stored bytes (head not counted)"),
    "flops": Axis("inference_flops_ratio", "FLOPs at inference", {"tickformat": ".0%"}),
    "sparsity": Axis(
        "weight_sparsity", "weights that are zero or gone", {"tickformat": ".0%"}
    ),
}  # fmt: skip
"""By the name that users choose them with."""


def telling_axes(summary: StudySummary) -> tuple[str, ...]:
    """Names of the axes along which a study's structures differ; parameters always."""
    rows = [row for budget in summary.budgets for row in budget.strategies]
    values = {name: {getattr(row, axis.attribute) for row in rows} for name, axis in AXES.items()}
    return tuple(n for n in AXES if n == "parameters" or len(values[n]) > 1)


def scores_figure(
    summary: StudySummary, axis: str = "parameters", single: Sequence[ScoredTrial] = ()
) -> Figure:
    """Mean validation score of each strategy against a cost, a bar for the spread over seeds.

    Args:
        summary: Of the study.
        axis: One of ``AXES``.
        single: Trials to show each by itself: hidden until one clicks them in the legend.
    """
    from plotly.graph_objects import Figure, Scatter

    figure, x = Figure(), AXES[axis]
    strategies = list(
        dict.fromkeys(row.strategy for budget in summary.budgets for row in budget.strategies)
    )
    for number, strategy in enumerate(strategies):
        color = COLORS[number % len(COLORS)]
        rows = [
            (budget.name, row)
            for budget in summary.budgets
            for row in budget.strategies
            if row.strategy == strategy
        ]
        figure.add_trace(
            Scatter(
                x=[getattr(row, x.attribute) for _, row in rows],
                y=[row.validation.mean for _, row in rows],
                error_y={"type": "data", "array": [row.validation.std or 0.0 for _, row in rows]},
                mode="lines+markers",
                name=strategy,
                legendgroup=strategy,
                line={"color": color, "width": 1.5},
                marker={"size": 9},
                customdata=[
                    [html.escape(name), row.validation.n, row.trainable_params, row.stored_bytes]
                    for name, row in rows
                ],
                hovertemplate="%{fullData.name} at %{customdata[0]}: %{y:.4f} "
                "over %{customdata[1]} seeds<br>%{customdata[2]:,} parameters, "
                "%{customdata[3]:,} stored bytes<extra></extra>",
            )
        )
        own = [t for t in single if t.strategy == strategy and t.state == "ok" and t.budget]
        if own:
            figure.add_trace(_single(own, x, color))
    for reference in summary.references:
        _reference(figure, reference)
    dress(
        figure,
        f"{summary.metric} on validation",
        "mean and standard deviation over seeds; dashed: references without a budget",
    )
    layout = counts_axis(figure) if x.layout is None else x.layout
    figure.update_xaxes(title_text=x.title, **layout)
    figure.update_yaxes(title_text=summary.metric)
    figure.update_layout(height=520, margin={"t": 90, "l": 60, "r": 20})
    return figure


def _single(trials: Sequence[ScoredTrial], x: Axis, color: str) -> Any:
    """The trials of one strategy, each by itself."""
    from plotly.graph_objects import Scatter

    every = math.ceil(len(trials) / _MOST_SINGLE)
    thinned = "" if every == 1 else f" (one of {every})"
    shown = trials[::every]
    return Scatter(
        x=[getattr(t, x.attribute) for t in shown],
        y=[t.score for t in shown],
        mode="markers",
        name=f"{trials[0].strategy}, single seeds{thinned}",
        visible="legendonly",
        marker={"size": 6, "color": color, "opacity": 0.6, "symbol": "circle-open"},
        text=[f"trial {t.number}, seed {t.seed}" for t in shown],
        customdata=[[t.trainable_params, t.stored_bytes] for t in shown],
        hovertemplate="%{text}: %{y:.4f}, %{customdata[0]:,} parameters, "
        "%{customdata[1]:,} stored bytes<extra></extra>",
    )


def _reference(figure: Figure, row: StrategySummary) -> None:
    label = f"{row.strategy} {row.validation.mean:.4f}"
    figure.add_hline(
        y=row.validation.mean, line={"dash": "dash", "width": 1, "color": "#7a7f87"},
        annotation_text=html.escape(label), annotation_position="top right",
    )  # fmt: skip


def intervals_figure(summary: StudySummary) -> Figure | None:
    """The searched strategy minus its rivals at each budget, with 95% intervals; None without any.

    Args:
        summary: Of the study.
    """
    from plotly.graph_objects import Figure, Scatter

    found = [(budget.name, c) for budget in summary.budgets for c in budget.comparisons]
    if not found:
        return None
    figure = Figure()
    for number, family in enumerate(dict.fromkeys(c.family for _, c in found)):
        own = [(name, c) for name, c in found if c.family == family]
        reach = [(0.0 if c.high is None else c.high - c.difference) for _, c in own]
        figure.add_trace(
            Scatter(
                x=[c.difference for _, c in own],
                y=[html.escape(f"{name}, {c.rival}") for name, c in own],
                error_x={"type": "data", "array": reach, "thickness": 2},
                mode="markers",
                name=html.escape(f"against {family}"),
                marker={"size": 9, "color": COLORS[number % len(COLORS)]},
                customdata=[c.n for _, c in own],
                hovertemplate="%{y}: %{x:+.4f} over %{customdata} pairs<extra></extra>",
            )
        )
    figure.add_vline(x=0, line={"width": 1, "color": "#7a7f87"})
    dress(
        figure,
        f"{summary.searched} minus its rivals",
        "paired over seeds, with 95% intervals; one pair has none. Right of zero it is better.",
    )
    figure.update_xaxes(title_text=f"difference in {summary.metric}", tickformat="+.3f")
    figure.update_yaxes(autorange="reversed", automargin=True)
    figure.update_layout(height=160 + 30 * len(found), margin={"t": 90, "r": 20})
    return figure


def alpha_figure(trace: AlphaTrace) -> Figure:
    """How alpha of the highest candidates went over the steps of a search, a colour for each kind.

    Args:
        trace: As the ranking has it.
    """
    from plotly.graph_objects import Figure, Scatter

    figure = Figure()
    shown = trace.candidates[:_MOST_LINES]
    kinds = list(dict.fromkeys(name.split()[1] for name in shown))
    seen: set[str] = set()
    for place, name in enumerate(shown):
        kind = name.split()[1]
        figure.add_trace(
            Scatter(
                x=trace.steps,
                y=[alpha[place] for alpha in trace.alpha],
                mode="lines",
                name=html.escape(kind),
                legendgroup=kind,
                showlegend=kind not in seen,
                line={"color": COLORS[kinds.index(kind) % len(COLORS)], "width": 1.2},
                hovertemplate=f"{html.escape(name)}: %{{y:.3f}} after step %{{x}}<extra></extra>",
            )
        )
        seen.add(kind)
    dress(
        figure,
        "alpha over the search",
        f"the {len(shown)} candidates that end highest; the selection takes them from above",
    )
    figure.update_xaxes(title_text="step")
    figure.update_yaxes(title_text="alpha")
    figure.update_layout(height=460, margin={"t": 90, "l": 60, "r": 20})
    return figure


def curves_figure(summary: StudySummary, trials: Sequence[ScoredTrial]) -> Figure | None:
    """Mean validation score after each epoch, a line for each strategy and budget; None without any.

    A trial that ended early counts in the epochs that it had. Budgets that an outer loop proposed are left out.

    Args:
        summary: Of the study.
        trials: All of its trials.
    """
    from plotly.graph_objects import Figure, Scatter

    groups: dict[tuple[str, str], list[tuple[float, ...]]] = {}
    listed = {budget.name for budget in summary.budgets}
    for t in trials:
        if t.history and (t.budget is None or budget_name(t.budget) in listed):
            groups.setdefault((t.strategy, budget_name(t.budget)), []).append(t.history)
    if not any(len(history) > 1 for group in groups.values() for history in group):
        return None
    figure = Figure()
    strategies = list(dict.fromkeys(strategy for strategy, _ in groups))
    for (strategy, budget), histories in groups.items():
        means = {
            epoch + 1: spread(values).mean
            for epoch in range(max(map(len, histories)))
            if (
                values := [
                    h[epoch] for h in histories if len(h) > epoch and not math.isnan(h[epoch])
                ]
            )
        }
        color = COLORS[strategies.index(strategy) % len(COLORS)]
        figure.add_trace(
            Scatter(
                x=list(means),
                y=list(means.values()),
                mode="lines+markers",
                name=html.escape(f"{strategy}, {budget}"),
                legendgroup=strategy,
                line={"color": color},
                hovertemplate="%{fullData.name}: %{y:.4f} after epoch %{x}<extra></extra>",
            )
        )
    dress(figure, "learning curves", "mean over seeds, on validation, after each epoch")
    figure.update_xaxes(title_text="epoch", dtick=1)
    figure.update_layout(height=460, margin={"t": 100, "l": 60, "r": 20})
    return figure
