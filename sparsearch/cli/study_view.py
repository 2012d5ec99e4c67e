"""A study's summary: a row for each strategy, the front, the best of each budget."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from sparsearch.cli.commands.reading.trials import messages_of
from sparsearch.cli.tables import (
    NOTHING,
    SHOWN_DIGITS,
    budget_text,
    count_text,
    score_text,
    settings_text,
    table_of,
)

if TYPE_CHECKING:
    from rich.console import RenderableType

    from sparsearch.results.answers import ScoredTrial
    from sparsearch.results.report.summary import Spread, StrategySummary, StudySummary


__all__ = [
    "summary_view",
]


def _spread(value: Spread | None) -> str:
    """Mean, and the standard deviation where there are several seeds."""
    if value is None:
        return NOTHING
    return f"{value.mean:.4f}" + (f" ({value.std:.4f})" if value.std is not None else "")


def summary_view(summary: StudySummary) -> RenderableType:
    """Score against parameters, each budget's best structure, and whether the search paid off."""
    parts: list[RenderableType] = [_summary_table(summary), Text()]
    for budget in summary.budgets:
        parts.append(_best_line(budget.name, budget.best))
        parts += [Text(f"  {line}") for line in summary.findings(budget)]
    if summary.front:
        parts += [Text(), _front_table(summary.front)]
    if summary.unsuccessful:
        title = f"\n{len(summary.unsuccessful)} trials did not succeed:"
        parts += [Text(title, "bold"), messages_of(summary.unsuccessful)]
    return Group(*parts)


def _front_table(front: Sequence[ScoredTrial]) -> Table:
    """The best of planned and proposed trials, by parameters."""
    right = ("params", "stored", "validation", "test", "trial")
    title = "front of score against parameters, planned and proposed trials"
    table = table_of(*right, "strategy", "settings", title=title, right=right)
    for t in front:
        scores = (score_text(t.score), score_text(t.test_score))
        table.add_row(
            count_text(t.trainable_params or 0),
            count_text(t.stored_bytes),
            *scores,
            str(t.number),
            t.strategy,
            settings_text(t.settings),
        )
    return table


def _summary_table(summary: StudySummary) -> Table:
    columns = ("budget", "strategy", "validation", "test", "seeds", "params", "stored")
    title = (
        f"{summary.study}: {summary.metric}, mean (standard deviation) over seeds; stored bytes"
    )
    table = table_of(*columns, title=title, right=columns[2:])
    for budget in summary.budgets:
        for number, row in enumerate(budget.strategies):
            label = "" if number else budget_text(budget.budget)
            _add_strategy(table, label, row, searched=row.strategy == summary.searched)
        if not budget.strategies:
            table.add_row(budget_text(budget.budget), "no successful trial", "", "", "", "", "")
        table.add_section()
    for number, row in enumerate(summary.references):
        _add_strategy(table, "" if number else "references", row, searched=False)
    return table


def _add_strategy(table: Table, label: str, row: StrategySummary, *, searched: bool) -> None:
    table.add_row(
        label,
        Text(row.strategy, "bold" if searched else ""),
        _spread(row.validation),
        _spread(row.test),
        str(row.validation.n),
        count_text(row.trainable_params),
        count_text(row.stored_bytes),
    )


def _best_line(budget: str, best: ScoredTrial | None) -> Text:
    if best is None:
        return Text(f"{budget}: no structure")
    return Text.assemble(
        (f"{budget}: ", "bold"),
        f"best on validation is {best.strategy} seed {best.seed}, structure ",
        ((best.structure or "")[:SHOWN_DIGITS], "bold"),
        f", score {score_text(best.score)}, test {score_text(best.test_score)}",
    )
