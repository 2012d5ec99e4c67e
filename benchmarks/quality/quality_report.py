"""The judge's report: tables in Markdown, paired differences with intervals, and a picture."""

from __future__ import annotations

import random
import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_GRID = 3
"""Multiples of the rates that the judge tries for everybody."""


@dataclass(frozen=True)
class Score:
    """One seed of one contestant at its tuned rate; draws are averaged.

    Attributes:
        validation: Mean over draws.
        test: Mean over draws.
        params: Mean over draws.
        stored_bytes: Mean over draws.
        seconds: Mean wall time, search included.
        search_seconds: Mean wall time of the ranking.
        search_steps: Mean steps of the search.
    """

    validation: float
    test: float
    params: float
    stored_bytes: float
    seconds: float
    search_seconds: float
    search_steps: float


Table = dict[tuple[str, str, str], dict[int, Score]]
"""(task, budget, contestant) -> seed -> score."""


def tabulate(lines: Iterable[dict[str, Any]]) -> Table:
    """The runs at each contestant's tuned rate."""
    cells = [(line["cell"], line) for line in lines if line["state"] == "ok"]
    tried: dict[tuple[str, str, str], dict[float, dict[int, float]]] = {}
    for cell, line in cells:
        if cell["draw"] == 0:
            name = (cell["task"], cell["budget"], cell["contestant"])
            seeds_of = tried.setdefault(name, {}).setdefault(cell["multiple"], {})
            seeds_of[cell["seed"]] = line["validation"]
    tuned = {name: _best_multiple(multiples) for name, multiples in tried.items()}
    groups: dict[tuple[str, str, str], dict[int, list[dict[str, Any]]]] = {}
    for cell, line in cells:
        name = (cell["task"], cell["budget"], cell["contestant"])
        if cell["multiple"] == tuned.get(name):
            groups.setdefault(name, {}).setdefault(cell["seed"], []).append(line)
    keys = (
        "validation",
        "test",
        "params",
        "stored_bytes",
        "seconds",
        "search_seconds",
        "search_steps",
    )
    return {
        name: {
            seed: Score(*(statistics.fmean(float(d.get(k) or 0) for d in draws) for k in keys))
            for seed, draws in seeds.items()
        }
        for name, seeds in groups.items()
    }


def _best_multiple(validation: dict[float, dict[int, float]]) -> float:
    """The multiple of the highest mean over the seeds that the grid was tried at; the first of equals, as in the judge.

    One that was tried at fewer seeds (beyond the grid, say) competes where the grid has no more.
    """
    tries = Counter(seed for seeds in validation.values() for seed in seeds)
    grid = min(_GRID, len(validation))
    tuned = {seed for seed, count in tries.items() if count >= grid}
    whole = {m: seeds for m, seeds in validation.items() if tuned <= set(seeds)}
    return max(whole, key=lambda m: statistics.fmean(whole[m][s] for s in tuned))


def interval(
    differences: Sequence[Sequence[float]], resamples: int = 10_000
) -> tuple[float, float]:
    """95% bootstrap interval of the mean over tasks of the mean over seeds; seeds are drawn within a task."""
    stream = random.Random(0)
    means = sorted(
        statistics.fmean(
            statistics.fmean(stream.choices(task, k=len(task))) for task in differences
        )
        for _ in range(resamples)
    )
    return means[int(0.025 * resamples)], means[int(0.975 * resamples)]


def paired(
    table: Table, tasks: Sequence[str], budget: str, ours: str, other: str, split: str
) -> list[list[float]]:
    """Differences, ours minus the other, of the seeds that both have: one list per task."""
    found = []
    for task in tasks:
        a, b = table.get((task, budget, ours), {}), table.get((task, budget, other), {})
        both = sorted(set(a) & set(b))
        if both:
            found.append([getattr(a[s], split) - getattr(b[s], split) for s in both])
    return found


def print_report(table: Table, ours: str, tasks: Sequence[str]) -> None:
    """Tables in Markdown: scores, then what ours gains over each contestant."""
    budgets = sorted({b for _, b, _ in table if b}, key=lambda b: float(b.rstrip("%")))
    for task in tasks:
        full = table.get((task, "", "full"), {})
        whole = statistics.fmean(s.test for s in full.values()) if full else None
        print(
            f"\n### {task}\n\n| budget | contestant | validation | test | of full | parameters | "
            "stored bytes | seeds | search steps | search s | all s |\n|---|---|---|---|---|---|---|---|---|---|---|"
        )
        for budget in (*budgets, ""):
            rows = [(c, v) for (t, b, c), v in table.items() if t == task and b == budget]
            rows.sort(key=lambda row: -statistics.fmean(s.test for s in row[1].values()))
            for position, (name, seeds) in enumerate(rows):
                values = list(seeds.values())
                test = statistics.fmean(s.test for s in values)
                first = (budget or "reference") if position == 0 else ""
                print(
                    f"| {first} | `{name}` | {_spread([s.validation for s in values])} | "
                    f"{_spread([s.test for s in values])} | {f'{100 * test / whole:.1f}%' if whole else ''} | "
                    f"{statistics.fmean(s.params for s in values):,.0f} | "
                    f"{statistics.fmean(s.stored_bytes for s in values):,.0f} | {len(values)} | "
                    f"{statistics.fmean(s.search_steps for s in values):.0f} | "
                    f"{statistics.fmean(s.search_seconds for s in values):.0f} | "
                    f"{statistics.fmean(s.seconds for s in values):.0f} |"
                )
    print(f"\n### `{ours}` against the others, mean over tasks, points of the test score\n")
    print(
        "| budget | against | tasks | difference | 95% interval | pairs |\n|---|---|---|---|---|---|"
    )
    for budget in budgets:
        for name in sorted({c for _, b, c in table if b == budget and c != ours}):
            found = paired(table, tasks, budget, ours, name, "test")
            if found:
                low, high = interval(found)
                mean = statistics.fmean(map(statistics.fmean, found))
                both = [t for t in tasks if paired(table, [t], budget, ours, name, "test")]
                print(
                    f"| {budget} | `{name}` | {', '.join(both)} | {100 * mean:+.1f} | "
                    f"{100 * low:+.1f} to {100 * high:+.1f} | {sum(map(len, found))} |"
                )


def _spread(values: Sequence[float]) -> str:
    spread = f" ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{100 * statistics.fmean(values):.1f}{spread}"


def plot(table: Table, tasks: Sequence[str], file: Path) -> None:
    """Score against parameters, one panel per task, a line per contestant."""
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    figure = make_subplots(1, len(tasks), subplot_titles=list(tasks))
    names = sorted({c for _, b, c in table if b})
    palette = go.layout.Template().layout.colorway or [
        "#4c78a8", "#f58518", "#e45756", "#72b7b2", "#54a24b", "#b279a2", "#9d755d", "#888888",
        "#d67195", "#79706e", "#eeca3b", "#1f9e89",
    ]  # fmt: skip
    for column, task in enumerate(tasks, 1):
        for number, name in enumerate(names):
            rows = sorted(
                (statistics.fmean(s.params for s in v.values()), [s.test for s in v.values()])
                for (t, b, c), v in table.items()
                if t == task and b and c == name
            )
            figure.add_scatter(
                x=[p for p, _ in rows], y=[100 * statistics.fmean(v) for _, v in rows],
                error_y={"array": [100 * statistics.stdev(v) if len(v) > 1 else 0 for _, v in rows]},
                name=name, legendgroup=name, showlegend=column == 1, mode="lines+markers",
                line={"color": palette[number % len(palette)], "width": 4 if name == "ours" else 1.5},
                row=1, col=column,
            )  # fmt: skip
        full = table.get((task, "", "full"), {})
        if full:
            figure.add_hline(
                100 * statistics.fmean(s.test for s in full.values()), line_dash="dot",
                annotation_text="full fine-tuning", row=1, col=column,
            )  # fmt: skip
    figure.update_xaxes(type="log", title="trainable parameters, head apart")
    figure.update_yaxes(title="test accuracy, %")
    figure.update_layout(template="plotly_white", width=560 * len(tasks), height=520)
    figure.write_html(file)


def report_on(lines: Sequence[dict[str, Any]], ours: str, picture: Path | None) -> None:
    """Print the tables; draw the picture if a file is named."""
    table = tabulate(lines)
    tasks = sorted({task for task, _, _ in table})
    print_report(table, ours, tasks)
    if picture:
        plot(table, tasks, picture)
