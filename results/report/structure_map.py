"""The heat map of a structure: layers x positions."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsearch.results.records import Best
from sparsearch.results.report.grid import GridCell, candidate_name, place_of, pruned_fraction_of
from sparsearch.results.report.summary import budget_name
from sparsearch.spaces.candidate import Candidate
from sparsearch.spaces.structure import Structure

if TYPE_CHECKING:
    from plotly.graph_objects import Figure
from sparsearch.results.report.html import dress, figure_json, write_page

__all__ = [
    "structure_figure",
    "write_structure_plot",
]

_COLUMNS = (
    *(f"{block}.{part}" for block in ("attn", "cross") for part in "qkvo"),
    *("ffn.gate", "ffn.up", "ffn.down"),
    *("attn.norm", "cross.norm", "ffn.norm", "norm"),
    *("attn", "cross", "ffn"),
)
"""Left to right: linears, norms, whole blocks. What is not listed stands at the end."""


_EMPTY = "#eef1f5"


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
        if (share := pruned_fraction_of(c, structure)) is not None:
            pruned[place.stack, place.row, place.column] = share
    known = {column: i for i, column in enumerate(_COLUMNS)}
    columns = sorted({p.column for p in places}, key=lambda c: (known.get(c, len(known)), c))
    return _Map(tuple(_rows(places)), tuple(columns), cells, pruned)


def _rows(places: Sequence[GridCell]) -> Iterable[tuple[str, str]]:
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
    dress(figure, *_structure_title(best))
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
        candidate_name(c, grid.pruned[key] if c.role == "mask" else None)
        for c in grid.cells.get(key, ())
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


def write_structure_plot(best: Best, path: Path, positions: Sequence[str] = ()) -> None:
    """Write the heat map of a structure, see ``structure_figure``.

    Raises:
        ExportError: If the file cannot be written.
    """
    figure = figure_json(structure_figure(best, positions))
    title = f"structure {best.structure.hash[:12]}"
    write_page(path, "--plot", "plot.html", title=title, figure=figure, summary=None)
