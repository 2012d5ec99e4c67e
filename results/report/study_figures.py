"""Pictures of a whole study: means over seeds against parameters, and learning curves."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from sparsearch.results.records import TrialRecord
from sparsearch.results.report.html import COLORS, dress
from sparsearch.results.report.summary import StrategySummary, StudySummary, budget_name, spread

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

__all__ = ["curves_figure", "means_figure"]

_MOST_SINGLE = 3000
"""Single trials of a strategy in a picture; of more than that one of so many is drawn, and the legend says so."""


def means_figure(summary: StudySummary, trials: Sequence[TrialRecord]) -> Figure:
    """Mean validation score of each strategy against its parameters, a bar for the spread over seeds.

    Single trials are there too, but hidden until one clicks them in the legend.

    Args:
        summary: Of the study.
        trials: All of its trials.
    """
    from plotly.graph_objects import Figure, Scatter

    figure = Figure()
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
                x=[row.trainable_params for _, row in rows],
                y=[row.validation.mean for _, row in rows],
                error_y={"type": "data", "array": [row.validation.std or 0.0 for _, row in rows]},
                mode="lines+markers",
                name=strategy,
                legendgroup=strategy,
                line={"color": color, "width": 1.5},
                marker={"size": 9},
                customdata=[[html.escape(name), row.validation.n] for name, row in rows],
                hovertemplate="%{fullData.name} at %{customdata[0]}: %{y:.4f} "
                "over %{customdata[1]} seeds<br>%{x:,} parameters<extra></extra>",
            )
        )
        single = [t for t in trials if t.strategy == strategy and t.state == "ok" and t.budget]
        every = math.ceil(len(single) / _MOST_SINGLE) or 1
        thinned = "" if every == 1 else f" (one of {every})"
        single = single[::every]
        figure.add_trace(
            Scatter(
                x=[t.trainable_params for t in single],
                y=[t.score for t in single],
                mode="markers",
                name=f"{strategy}, single seeds{thinned}",
                visible="legendonly",
                marker={"size": 6, "color": color, "opacity": 0.6, "symbol": "circle-open"},
                text=[f"trial {t.number}, seed {t.seed}" for t in single],
                hovertemplate="%{text}: %{y:.4f}, %{x:,} parameters<extra></extra>",
            )
        )
    for reference in summary.references:
        _reference(figure, reference)
    dress(
        figure,
        f"{summary.metric} on validation against trainable parameters",
        "mean and standard deviation over seeds; dashed: references without a budget",
    )
    figure.update_xaxes(
        type="log",
        dtick="D2",
        tickformat=",",
        title_text="trainable parameters (head not counted)",
    )
    figure.update_yaxes(title_text=summary.metric)
    figure.update_layout(height=560, margin={"t": 100, "l": 60, "r": 20})
    return figure


def _reference(figure: Figure, row: StrategySummary) -> None:
    label = f"{row.strategy} {row.validation.mean:.4f}"
    figure.add_hline(
        y=row.validation.mean, line={"dash": "dash", "width": 1, "color": "#7a7f87"},
        annotation_text=html.escape(label), annotation_position="top right",
    )  # fmt: skip


def curves_figure(summary: StudySummary, trials: Sequence[TrialRecord]) -> Figure | None:
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
        means = [
            spread(v for v in values if not math.isnan(v)).mean
            for epoch in range(max(map(len, histories)))
            if (values := [h[epoch] for h in histories if len(h) > epoch])
            and not all(map(math.isnan, values))
        ]
        color = COLORS[strategies.index(strategy) % len(COLORS)]
        figure.add_trace(
            Scatter(
                x=list(range(1, len(means) + 1)),
                y=means,
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
