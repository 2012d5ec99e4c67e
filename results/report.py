"""Pictures of what is remembered, each one HTML file that needs no network."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsearch.errors import ExportError
from sparsearch.results.places import Place, candidate_name, place_of, pruned_share
from sparsearch.results.summary import StudySummary, budget_name, spread, summarise
from sparsearch.results.values import Best, StudyRecord, TrialRecord
from sparsearch.spaces.space import Candidate
from sparsearch.spaces.structure import Structure

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

__all__ = [
    "pareto_figure",
    "structure_figure",
    "write_pareto_plot",
    "write_structure_plot",
]

_COLUMNS = (
    *(f"{block}.{part}" for block in ("attn", "cross") for part in "qkvo"),
    *("ffn.gate", "ffn.up", "ffn.down"),
    *("attn.norm", "cross.norm", "ffn.norm", "norm"),
    *("attn", "cross", "ffn"),
)
"""Left to right: linears, norms, whole blocks. What is not listed stands at the end."""

_FONT = "Inter, 'Segoe UI', Helvetica, Arial, sans-serif"
_PROSE = f"font: 14px/1.6 {_FONT}; color: #2b2f36; max-width: 1000px; padding: 0 24px;"
_EMPTY = "#eef1f5"
_COLORS = ("#3b6fb6", "#d1673a", "#3f9268", "#8a5fb0", "#b9952c", "#c04f78", "#4a9db0", "#7a7f87")


# The map of a structure


@dataclass(frozen=True)
class _Map:
    """Rows, columns, and what stands in each cell; also the empty cells of the backbone.

    ``pruned`` is the share of a cell's matrix that a mask sets to zero.
    """

    rows: tuple[tuple[str, str], ...]
    columns: tuple[str, ...]
    cells: dict[tuple[str, str, str], tuple[Candidate, ...]]
    pruned: dict[tuple[str, str, str], float]


def _map_of(structure: Structure, positions: Sequence[str]) -> _Map:
    cells: dict[tuple[str, str, str], tuple[Candidate, ...]] = {}
    pruned: dict[tuple[str, str, str], float] = {}
    candidates = structure.candidates
    places = [place_of(name) for name in (*positions, *(c.position for c in candidates))]
    for place in places:
        cells.setdefault((place.stack, place.row, place.column), ())
    for c in candidates:
        place = place_of(c.position)
        cells[place.stack, place.row, place.column] += (c,)
        if (share := pruned_share(c, structure)) is not None:
            pruned[place.stack, place.row, place.column] = share
    known = {column: i for i, column in enumerate(_COLUMNS)}
    columns = sorted({p.column for p in places}, key=lambda c: (known.get(c, len(known)), c))
    return _Map(tuple(_rows(places)), tuple(columns), cells, pruned)


def _rows(places: Sequence[Place]) -> Iterable[tuple[str, str]]:
    """(stack, row) from the input to the output; layers between chosen ones are there too."""
    stacks = sorted({p.stack for p in places}, key=lambda s: (s == "decoder", s))
    for stack in stacks:
        inside = [p for p in places if p.stack == stack]
        outside = list(dict.fromkeys(p.row for p in inside if p.layer is None))
        yield from ((stack, row) for row in outside if row != "final")
        count = max((p.layer for p in inside if p.layer is not None), default=-1) + 1
        yield from ((stack, f"layer {layer}") for layer in range(count))
        if "final" in outside:
            yield stack, "final"


def structure_figure(best: Best, positions: Sequence[str] = ()) -> Figure:
    """The heat map of a structure: layers x positions, coloured by trainable parameters, under a mask by its density.

    Args:
        best: The structure and its trial.
        positions: Canonical names of all positions of the backbone, so that empty ones show;
            without them the map spans the layers and columns that the structure uses.
    """
    from plotly.subplots import make_subplots

    grid = _map_of(best.structure, positions)
    stacks = list(dict.fromkeys(stack for stack, _ in grid.rows)) or [""]
    heights = [max(1, sum(s == stack for s, _ in grid.rows)) for stack in stacks]
    figure = make_subplots(
        rows=len(stacks),
        cols=1,
        shared_xaxes=True,
        row_heights=heights,
        vertical_spacing=0.5 / (sum(heights) + 1),
    )
    sums = [
        sum(c.params for c in cell) for at, cell in grid.cells.items() if at not in grid.pruned
    ]
    for number, stack in enumerate(stacks, start=1):
        for trace in _traces(grid, stack):
            figure.add_trace(trace, row=number, col=1)
        figure.update_yaxes(
            title_text=stack or None, autorange="reversed", showgrid=False, row=number, col=1
        )
    figure.update_xaxes(showgrid=False, showticklabels=False)
    figure.update_xaxes(showticklabels=True, side="top", row=1, col=1)
    _dress(figure, *_structure_title(best))
    size = {"height": 190 + 46 * sum(heights), "width": 260 + 94 * max(5, len(grid.columns))}
    axes = {"coloraxis": _color_axis(sums), "coloraxis2": _pruned_axis(beside=any(sums))}
    figure.update_layout(**size, **axes, margin={"t": 150, "b": 40})
    return figure


def _traces(grid: _Map, stack: str) -> Iterable[Any]:
    """The backbone's empty cells, the chosen ones over them, and those under a mask."""
    from plotly.graph_objects import Heatmap

    rows = [row for s, row in grid.rows if s == stack]
    keys = [[(stack, row, column) for column in grid.columns] for row in rows]
    shared = {"x": list(grid.columns), "y": rows, "xgap": 3, "ygap": 3}
    yield Heatmap(
        **shared,
        z=[[0 if key in grid.cells else None for key in line] for line in keys],
        colorscale=[[0, _EMPTY], [1, _EMPTY]],
        showscale=False,
        hovertemplate="%{y}, %{x}: nothing chosen<extra></extra>",
    )
    sums = {key: sum(c.params for c in cell) for key, cell in grid.cells.items()}
    # What is cut has no parameters: the lightest colour.
    params = {
        key: math.log10(max(1, sums[key]))
        for key, cell in grid.cells.items()
        if cell and key not in grid.pruned
    }
    for values, axis in ((params, "coloraxis"), (grid.pruned, "coloraxis2")):
        if not values:
            continue
        yield Heatmap(
            **shared,
            z=[[values.get(key) for key in line] for line in keys],
            text=[[_cell_text(grid, key) for key in line] for line in keys],
            customdata=[[f"{sums.get(key, 0):,} parameters" for key in line] for line in keys],
            texttemplate="%{text}",
            textfont={"size": 12},
            coloraxis=axis,
            hovertemplate="%{y}, %{x}<br>%{text}<br>%{customdata}<extra></extra>",
        )


def _cell_text(grid: _Map, key: tuple[str, str, str]) -> str:
    """What stands in a cell; the longest name needs two lines."""
    names = [
        candidate_name(c, grid.pruned[key] if c.masks else None) for c in grid.cells.get(key, ())
    ]
    return "<br>".join(name.replace("_adapter", "_<br>adapter") for name in names)


def _color_axis(sums: Sequence[int]) -> dict[str, Any]:
    """Parameters on a logarithmic scale, labelled with the numbers themselves."""
    used = [math.log10(total) for total in sums if total] or [0.0]
    low = math.floor(min(used))
    high = max(low + 1, math.ceil(max(used)))
    ticks = list(range(low, high + 1))
    return {
        "cmin": low,
        "cmax": high,
        "colorscale": [[0, "#d6e6f4"], [0.5, "#6aaed6"], [1, "#0b4a8f"]],
        "colorbar": {
            "title": {"text": "parameters", "side": "right"},
            "tickvals": ticks,
            "ticktext": [f"{10**step:,}" for step in ticks],
            "thickness": 14,
            "outlinewidth": 0,
        },
    }


def _pruned_axis(beside: bool) -> dict[str, Any]:
    """Share of a matrix that its mask sets to zero, beside the scale of parameters where there is one."""
    bar = {"title": {"text": "pruned", "side": "right"}, "tickformat": ".0%", "thickness": 14}
    return {
        "cmin": 0,
        "cmax": 1,
        "colorscale": [[0, "#fdf0e6"], [0.5, "#f0a870"], [1, "#a8481c"]],
        "colorbar": {**bar, "outlinewidth": 0, "x": 1.14 if beside else 1.02},
    }


def _structure_title(best: Best) -> tuple[str, str]:
    test = "" if best.test_score is None else f" (test {best.test_score:.4f})"
    budget = f" at {budget_name(best.budget)}" if best.budget is not None else ""
    facts = (
        f"{best.task}, {best.metric} {best.score:.4f}{test}",
        f"{best.trainable_params:,} trainable parameters, head {best.head_params:,}",
        f"seed {best.seed}",
        f"structure {best.structure.hash[:12]}",
    )
    return f"{best.study}: {best.strategy}{budget} on {best.model}", " · ".join(facts)


# Score against parameters


def pareto_figure(
    study: StudyRecord, trials: Sequence[TrialRecord], front: Sequence[Best]
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
        color = _COLORS[number % len(_COLORS)]
        figure.add_trace(_points([t for t in budgeted if t.strategy == strategy], color))
    means = {
        row: spread(t.score for t in done if t.strategy == row and t.score is not None).mean
        for row in dict.fromkeys(t.strategy for t in done if t.budget is None)
    }
    window = _window([t.score for t in budgeted if t.score is not None], list(means.values()))
    for strategy, mean in means.items():
        _reference(figure, strategy, mean, window)
    counts = f"{len(budgeted)} structures, {len(front)} on the front"
    _dress(
        figure,
        f"{study.name}: {study.metric} against trainable parameters",
        f"{study.task} on {study.model} · {counts}",
    )
    figure.update_xaxes(
        type="log",
        dtick="D2",
        tickformat=",",
        title_text="trainable parameters (head not counted)",
    )
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


def _points(trials: Sequence[TrialRecord], color: str) -> Any:
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
            ]
            for t in trials
        ],
        hovertemplate=(
            "%{fullData.name}, structure %{customdata[0]}<br>budget %{customdata[2]}, "
            "seed %{customdata[1]}<br>validation %{y:.4f}, test %{customdata[3]}<br>"
            "%{x:,} parameters<extra></extra>"
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


def _dress(figure: Figure, title: str, subtitle: str) -> None:
    """What both pictures share."""
    figure.update_layout(
        template="plotly_white",
        font={"family": _FONT, "size": 13, "color": "#2b2f36"},
        title={
            "text": html.escape(title),
            "subtitle": {"text": html.escape(subtitle)},
            "x": 0.02,
            "xanchor": "left",
        },
    )


# Writing


def write_structure_plot(best: Best, path: Path, positions: Sequence[str] = ()) -> None:
    """Write the heat map of a structure, see ``structure_figure``.

    Raises:
        ExportError: If the file cannot be written.
    """
    _write(structure_figure(best, positions), path, f"structure {best.structure.hash[:12]}")


def write_pareto_plot(
    study: StudyRecord, trials: Sequence[TrialRecord], front: Sequence[Best], path: Path
) -> None:
    """Write the picture of a study's trials, see ``pareto_figure``, and under it what they show.

    Raises:
        ExportError: If the file cannot be written.
    """
    findings = _findings(summarise(study, trials))
    _write(pareto_figure(study, trials, front), path, study.name, findings)


def _findings(summary: StudySummary) -> str:
    """What the end of a run says of each budget, as HTML; empty where nothing is compared."""
    parts = []
    for budget in summary.budgets:
        lines = "".join(f"<li>{html.escape(line)}</li>" for line in summary.findings(budget))
        if lines:
            parts.append(f"<h3>{html.escape(budget.name)}</h3><ul>{lines}</ul>")
    if summary.warnings:
        lines = "".join(f"<li>{html.escape(line)}</li>" for line in summary.warnings)
        parts.insert(0, f"<h3>warnings</h3><ul>{lines}</ul>")
    if not parts:
        return ""
    head = f"<h2>{html.escape(summary.metric)} on validation, paired over seeds</h2>"
    return f'<section style="{_PROSE}">{head}{"".join(parts)}</section>'


def _write(figure: Figure, path: Path, title: str, below: str = "") -> None:
    page = figure.to_html(include_plotlyjs=True, full_html=True)
    head = f"<head><title>sparsearch: {html.escape(title)}</title>"
    if below:
        # Plotly's outer box is as high as the window, not as the picture: text would lie over it.
        head += "<style>body > div { height: auto !important; }</style>"
        start, _, end = page.rpartition("</body>")
        page = f"{start}{below}</body>{end}"
    page = page.replace("<head>", head, 1)
    try:
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        missing = not path.parent.is_dir()
        raise ExportError(
            f"cannot write {str(path)!r}: {error.strerror or error}",
            f"mkdir -p {path.parent}" if missing else "give --plot another file name",
        ) from error
