"""What is known of a study before it runs: its budgets and its data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.text import Text

from sparsearch.cli.tables import count_text, table_of

if TYPE_CHECKING:
    from rich.console import RenderableType

    from sparsearch.search.tasks.data_summary import DataSummary
    from sparsearch.workers.preflight_summary import PreflightSummary


__all__ = [
    "coverage_lines",
    "data_table",
    "feasibility_table",
]

_CLASSES = 20
"""As many are shown one by one."""


def feasibility_table(checked: PreflightSummary) -> RenderableType:
    """The smallest candidate, what each budget buys, and what of the backbone no position reaches."""
    head = Text.assemble(
        (checked.study, "bold"),
        f": {checked.candidates:,} candidates with {checked.trainable_params:,} trainable "
        f"parameters on a backbone of {checked.backbone_params:,}",
        f"\nsmallest candidate: {checked.smallest}" if checked.smallest else "",
    )
    columns = ("budget", "parameters", "candidates that fit", "most together")
    table = table_of(*columns, right=columns[1:])
    for row in checked.budgets:
        limit = row.budget.get("max_trainable_params")
        table.add_row(
            row.budget.text, count_text(limit), count_text(row.fitting), count_text(row.most)
        )
    return Group(head, table, *coverage_lines(checked.guessed, checked.unreached))


def coverage_lines(guessed: str, unreached: Sequence[str]) -> list[Text]:
    """What was guessed of a backbone, and what of it no position reaches, a line each; nothing where all is well."""
    lines = [Text(f"warning: {guessed}", "yellow")] if guessed else []
    if unreached:
        lines.append(Text("no position reaches:", "yellow"))
    return [*lines, *(Text(f"  {line}") for line in unreached)]


def data_table(data: DataSummary) -> RenderableType:
    """The classes and their rows in each split; of targets the range."""
    splits = tuple(data.rows)
    if data.targets:
        table = table_of(
            "split",
            "rows",
            "smallest",
            "mean",
            "largest",
            right=("rows", "smallest", "mean", "largest"),
        )
        for split, numbers in data.targets.items():
            table.add_row(split, count_text(data.rows[split]), *(f"{n:.4g}" for n in numbers))
        return table
    table = table_of("class", *splits, right=splits)
    listed = list(data.classes.items())
    for name, counts in listed[:_CLASSES]:
        table.add_row(Text(name), *map(count_text, counts))
    if more := listed[_CLASSES:]:
        rest = [sum(counts) for counts in zip(*(c for _, c in more), strict=True)]
        table.add_row(f"{len(more)} more classes", *map(count_text, rest))
    table.add_section()
    table.add_row("all rows", *(count_text(data.rows[s]) for s in splits))
    return table
