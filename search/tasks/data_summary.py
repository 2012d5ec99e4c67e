"""What a task's data holds, as a value that is shown far from the data: nothing heavy is imported."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["DataSummary"]


@dataclass(frozen=True)
class DataSummary:
    """What the splits of a task hold.

    Attributes:
        rows: Name of a split -> number of rows.
        classes: Name of a class -> its rows in train, validation and test; empty for regression.
        targets: Name of a split -> smallest, mean and largest target; empty for classification.
        warnings: What makes the scores worth less than they look.
    """

    rows: Mapping[str, int]
    classes: Mapping[str, tuple[int, ...]]
    targets: Mapping[str, tuple[float, float, float]]
    warnings: tuple[str, ...] = ()

    @classmethod
    def from_dict(cls, facts: Mapping[str, Any]) -> DataSummary:
        """The summary of which ``dataclasses.asdict`` made plain values."""
        classes = {name: tuple(counts) for name, counts in facts["classes"].items()}
        return cls(facts["rows"], classes, facts["targets"], tuple(facts["warnings"]))
