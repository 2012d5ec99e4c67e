"""Tables: what commands share to show numbers. Readable at 80 columns."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from rich import box
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from rich.console import RenderableType

    from sparsearch.results.records import Best, StudyRecord


__all__ = [
    "FittingTable",
    "NOTHING",
    "SHOWN_DIGITS",
    "STATE_STYLES",
    "budget_text",
    "count_text",
    "facts",
    "hash_fact",
    "score_text",
    "seconds_text",
    "sparsity_facts",
    "table_of",
    "task_names",
    "warning_line",
]

STATE_STYLES = {
    "ok": "green",
    "running": "cyan",
    "queued": "dim",
    "infeasible": "yellow",
    "cancelled": "yellow",
    "oom": "red",
    "failed": "red",
    "outraced": "dim",
    "decided": "dim",
}


SHOWN_DIGITS = 8


NOTHING = "-"


def table_of(*columns: str, title: str = "", right: Iterable[str] = ()) -> Table:
    """A table with some columns of numbers."""
    table = Table(box=box.SIMPLE_HEAD, title=title or None, title_justify="left", pad_edge=False)
    table.title_style = "bold"
    numbers = set(right)
    for column in columns:
        number = column in numbers
        justify: Literal["left", "right"] = "right" if number else "left"
        table.add_column(column, justify=justify, overflow="fold", no_wrap=number)
    return table


@dataclasses.dataclass(frozen=True)
class FittingTable:
    """A table whose cells stay on one line, budgets aside; it leaves columns out where there is no room.

    Attributes:
        title: Above the table.
        columns: Names, from left to right.
        right: Those with numbers.
        spare: Those to leave out, the least important first.
        rows: A cell for each column.
    """

    title: str
    columns: Sequence[str]
    right: Sequence[str]
    spare: Sequence[str]
    rows: Sequence[Sequence[str | Text]]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        endless = options.update(max_width=10_000)
        for count in range(len(self.spare) + 1):
            table = self._without(self.spare[:count])
            if table.__rich_measure__(console, endless).minimum <= options.max_width:
                break
        yield table

    def _without(self, left_out: Sequence[str]) -> Table:
        table = Table(
            box=box.SIMPLE_HEAD, title=self.title, title_justify="left", title_style="bold",
            pad_edge=False, collapse_padding=True, show_edge=False,
        )  # fmt: skip
        if left_out:
            table.caption = f"no room here for {', '.join(left_out)}; --json has all"
            table.caption_justify = "left"
        kept = [i for i, column in enumerate(self.columns) if column not in left_out]
        for column in (self.columns[i] for i in kept):
            justify: Literal["left", "right"] = "right" if column in self.right else "left"
            table.add_column(column, justify=justify, no_wrap=column != "budget")
        for row in self.rows:
            table.add_row(*(row[i] for i in kept))
        return table


def facts(rows: Iterable[tuple[str, RenderableType]]) -> Table:
    """Names and values, one per line."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in rows:
        grid.add_row(name, value)
    return grid


def hash_fact(name: str) -> tuple[str, RenderableType]:
    """A structure's name, whole: on a very narrow screen a prefix, which commands take as well."""
    return "structure", Text(name, no_wrap=True, overflow="crop")


def score_text(score: float | None) -> str:
    """A score with four decimals."""
    return NOTHING if score is None else f"{score:.4f}"


def budget_words(budget: Mapping[str, Any] | None) -> str:
    """A budget in the user's words."""
    text, params = ((budget or {}).get(key) for key in ("text", "max_trainable_params"))
    if text:
        return str(text)
    return NOTHING if params is None else f"{params:,} params"


def budget_text(budget: Mapping[str, Any] | None) -> str:
    """The same, with the number that a share of the parameters stands for, or one of the stored bytes alone."""
    words, limits = budget_words(budget), budget or {}
    number = limits.get("max_trainable_params", limits.get("max_bytes"))
    return words if number is None or f"{number:,} " in words else f"{words} ({number:,})"


def settings_text(settings: Mapping[str, Any]) -> str:
    """What a trial has instead of the study's own settings; not which ranking it transfers."""
    return ", ".join(
        f"{path.partition('.')[2]} {f'{value:.3g}' if isinstance(value, float) else value}"
        for path, value in settings.items()
        if path != "search.transfer_from"
    )


def count_text(number: int | float | None) -> str:
    """A whole number with commas."""
    return NOTHING if number is None else f"{number:,.0f}"


def seconds_text(seconds: float | None) -> str:
    """A time, in the unit that suits it."""
    if seconds is None:
        return NOTHING
    return f"{seconds:.1f}" if seconds < 1000 else f"{seconds:,.0f}"


def warning_line(warning: str) -> Text:
    """What makes a result worth less than it looks."""
    return Text.assemble(("warning: ", "bold yellow"), warning)


def task_names(rows: Sequence[StudyRecord | Best]) -> list[str]:
    """What each row's task is called; with its fingerprint where another one has that name and metric."""
    tasks = {(row.task, row.metric, row.task_fingerprint) for row in rows}
    sharing = Counter((task, metric) for task, metric, _ in tasks)
    return [
        f"{row.task} ({row.task_fingerprint[:SHOWN_DIGITS]})"
        if sharing[row.task, row.metric] > 1
        else row.task
        for row in rows
    ]


def sparsity_facts(best: Best) -> list[tuple[str, str]]:
    """How sparse the weights are, if they are."""
    share, masked = 100 * best.weight_sparsity, best.structure.pruned_weights
    text = f"{share:.2f}% of the linears' weights zero or gone, {masked:,} of them masked"
    return [("sparsity", text)] if share or masked else []
