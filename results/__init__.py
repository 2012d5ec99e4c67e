"""What is remembered: studies, trials and outcomes, written and read through ``Store``."""

from sparsearch.results.lease import Owner
from sparsearch.results.store import Store
from sparsearch.results.values import (
    FINISHED,
    Attempt,
    Best,
    BestQuery,
    Environment,
    FinishedState,
    Measurement,
    Outcome,
    StudyRecord,
    StudySpec,
    Trial,
    TrialRecord,
)

__all__ = [
    "FINISHED",
    "Attempt",
    "Best",
    "Environment",
    "FinishedState",
    "Measurement",
    "Outcome",
    "Owner",
    "BestQuery",
    "Store",
    "StudyRecord",
    "StudySpec",
    "Trial",
    "TrialRecord",
]
