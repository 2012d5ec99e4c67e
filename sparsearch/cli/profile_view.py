"""Where the time of a study went: a row for each strategy, a column for each phase."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sparsearch.cli.tables import NOTHING, table_of
from sparsearch.search.phases import PHASES

if TYPE_CHECKING:
    from rich.table import Table

    from sparsearch.results.records import TrialRecord

__all__ = ["ProfileRow", "profile_of", "profile_view"]

OTHER = "other"
"""Attaching, selecting, making the head: what is in no phase of a trial."""


@dataclass(frozen=True)
class ProfileRow:
    """Seconds of the trials of one strategy, or of the driver that has just run.

    Attributes:
        name: Of the strategy; ``driver`` for what is loaded and stored beside trials.
        trials: How many have a profile.
        seconds: By phase.
    """

    name: str
    trials: int
    seconds: Mapping[str, float]


def profile_of(
    trials: Iterable[TrialRecord], driver: Mapping[str, float]
) -> tuple[ProfileRow, ...]:
    """Add up phases by strategy; trials of before profiles were kept are left out.

    Args:
        trials: As they are stored.
        driver: Seconds by phase of the driver; empty where it ran elsewhere.
    """
    groups: dict[str, list[dict[str, float]]] = {}
    for trial in trials:
        phases = (trial.environment or {}).get("phases")
        if phases:
            rest = (trial.seconds or 0.0) - sum(phases.values())
            groups.setdefault(trial.strategy, []).append({**phases, OTHER: max(rest, 0.0)})
    rows = [
        ProfileRow(name, len(group), {p: sum(s.get(p, 0.0) for s in group) for p in _of(group)})
        for name, group in groups.items()
    ]
    return (*rows, *([ProfileRow("driver", 0, dict(driver))] if driver else []))


def _of(group: Iterable[Mapping[str, Any]]) -> list[str]:
    seen = {phase for seconds in group for phase in seconds}
    return [phase for phase in (*PHASES, OTHER) if phase in seen]


def profile_view(rows: Iterable[ProfileRow]) -> Table:
    """Seconds, with the share of each phase in the last row."""
    listed = list(rows)
    columns = _of(row.seconds for row in listed)
    totals = {p: sum(row.seconds.get(p, 0.0) for row in listed) for p in columns}
    whole = sum(totals.values()) or 1.0
    right = ("trials", *columns, "all")
    table = table_of("strategy", *right, title="where the time went, in seconds", right=right)
    for row in listed:
        cells = [f"{row.seconds[p]:.1f}" if p in row.seconds else NOTHING for p in columns]
        count = str(row.trials) if row.trials else NOTHING
        table.add_row(row.name, count, *cells, f"{sum(row.seconds.values()):.1f}")
    table.add_section()
    shares = [f"{totals[p] / whole:.0%}" for p in columns]
    table.add_row("share", "", *shares, f"{whole:.1f}")
    return table
