"""What 99% of full fine-tuning costs: the fewest stored bytes at which each strategy keeps it, and the parameters.

One row per strategy, one mark per task; a table in Markdown, and an SVG picture of it.

    python benchmarks/quality/headline.py benchmarks/results/quality-bytes.jsonl --svg docs/pictures/headline.svg
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from quality import read_lines
from quality_report import Table, tabulate

KEPT = 0.99
COLOURS = ("#3a6fb0", "#d1603d", "#3f9163", "#8a5fb0", "#b8952f")
LEFT, PANEL, GAP, TOP, ROW = 110, 330, 40, 62, 26
"""Of the picture, in pixels."""


@dataclass(frozen=True)
class Cost:
    """Means over seeds of what a strategy needs on a task.

    Attributes:
        params: Trained, head apart.
        stored_bytes: Head apart.
        kept: Share of the test score of full fine-tuning.
    """

    params: float
    stored_bytes: float
    kept: float


def costs(table: Table) -> dict[str, dict[str, Cost | None]]:
    """Contestant -> task -> the budget of fewest bytes that keeps enough; None where none of those measured does."""
    found: dict[str, dict[str, Cost | None]] = {}
    for (task, budget, name), seeds in table.items():
        full = table.get((task, "", "full"))
        if not budget or not full:
            continue
        values = seeds.values()
        cost = Cost(
            statistics.fmean(s.params for s in values),
            statistics.fmean(s.stored_bytes for s in values),
            statistics.fmean(s.test for s in values)
            / statistics.fmean(s.test for s in full.values()),
        )
        best = found.setdefault(name, {}).setdefault(task, None)
        if cost.kept >= KEPT and (best is None or cost.stored_bytes < best.stored_bytes):
            found[name][task] = cost
    return dict(sorted(found.items(), key=_order))


def _order(row: tuple[str, Mapping[str, Cost | None]]) -> tuple[int, float]:
    """Those that reach it on most tasks first, then those of fewest bytes."""
    reached = [cost.stored_bytes for cost in row[1].values() if cost]
    return -len(reached), statistics.fmean(reached) if reached else math.inf


def print_table(found: Mapping[str, Mapping[str, Cost | None]], tasks: Sequence[str]) -> None:
    """Rows of Markdown."""
    print(
        "| strategy | "
        + " | ".join(f"{t}: parameters | stored bytes | kept" for t in tasks)
        + " |"
    )
    print("|---" * (1 + 3 * len(tasks)) + "|")
    for name, row in found.items():
        cells = []
        for task in tasks:
            cost = row.get(task)
            if cost:
                cells += [f"{cost.params:,.0f}", f"{cost.stored_bytes:,.0f}", f"{cost.kept:.1%}"]
            else:
                cells += ["", "not reached" if task in row else "not run", ""]
        print(f"| `{name}` | " + " | ".join(cells) + " |")


def svg(found: Mapping[str, Mapping[str, Cost | None]], tasks: Sequence[str]) -> str:
    """The picture: parameters on the left, bytes on the right, both on logarithmic axes."""
    bottom = TOP + ROW * len(found)
    width, height = LEFT + 2 * PANEL + GAP + 90, bottom + 40
    colours = {task: COLOURS[number % len(COLOURS)] for number, task in enumerate(tasks)}
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" '
        f'font-size="12"><rect width="{width}" height="{height}" fill="#ffffff"/>',
        f'<text x="{LEFT}" y="20" font-size="14">The cheapest measured budget that keeps {KEPT:.0%} of full '
        "fine-tuning</text>",
    ]
    for number, task in enumerate(tasks):
        left = LEFT + 90 * number
        parts.append(f'<circle cx="{left + 5}" cy="36" r="5" fill="{colours[task]}"/>')
        parts.append(f'<text x="{left + 15}" y="40">{escape(task)}</text>')
    for line, (name, row) in enumerate(found.items()):
        y = TOP + ROW * line + 10
        parts.append(f'<text x="{LEFT - 10}" y="{y}" text-anchor="end">{escape(name)}</text>')
        missed = ", ".join(task for task in tasks if task in row and row[task] is None)
        if missed:
            said = f'fill="#777777" font-size="10">not: {escape(missed)}</text>'
            parts.append(f'<text x="{width - 88}" y="{y}" {said}')
    for title, key, left in (
        ("trained parameters", "params", LEFT),
        ("stored bytes", "stored_bytes", LEFT + PANEL + GAP),
    ):
        parts += _panel(found, colours, title, key, left)
    return "\n".join([*parts, "</svg>\n"])


def _panel(
    found: Mapping[str, Mapping[str, Cost | None]],
    colours: Mapping[str, str],
    title: str,
    key: str,
    left: int,
) -> Iterator[str]:
    """One axis with its marks."""
    bottom = TOP + ROW * len(found)
    values = [getattr(c, key) for row in found.values() for c in row.values() if c]
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))

    def place(value: float) -> str:
        return f"{left + PANEL * (math.log10(value) - low) / (high - low):.1f}"

    for power in range(low, high + 1):
        x = place(10**power)
        yield f'<line x1="{x}" y1="{TOP - 8}" x2="{x}" y2="{bottom}" stroke="#dddddd"/>'
        yield f'<text x="{x}" y="{bottom + 16}" text-anchor="middle">{10**power:,}</text>'
    yield f'<text x="{left + PANEL // 2}" y="{bottom + 34}" text-anchor="middle">{title}</text>'
    for line, row in enumerate(found.values()):
        for task, cost in row.items():
            if cost:
                value = getattr(cost, key)
                yield (
                    f'<circle cx="{place(value)}" cy="{TOP + ROW * line + 6}" r="5" fill="{colours[task]}" '
                    f'fill-opacity="0.85"><title>{escape(task)}: {value:,.0f}</title></circle>'
                )


def main() -> None:
    """Print the table; write the picture if a file is named."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "results", type=Path, nargs="+", help="of `quality.py run --currency bytes`"
    )
    parser.add_argument("--svg", type=Path)
    arguments = parser.parse_args()
    table = tabulate([line for file in arguments.results for line in read_lines(file)])
    tasks = sorted({task for task, _, _ in table})
    found = costs(table)
    print_table(found, tasks)
    if arguments.svg:
        arguments.svg.write_text(svg(found, tasks))


if __name__ == "__main__":
    main()
