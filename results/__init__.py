"""What is remembered and handed over.

| file or folder | what it does |
|---|---|
| records | studies, trials and outcomes as values |
| answers | what reports, pages and streams need of many trials |
| source | where they are read from: a database, or a service |
| store | the database, written and read through ``Store`` |
| report | summaries, comparisons, plots |
| export | structures for training and serving |
"""

from sparsearch.results.records import (
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
from sparsearch.results.store.store import Store
from sparsearch.results.store.writing.lease import Owner

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
