"""A study filled by hand: two strategies, budgets and seeds, and both references."""

import json
from dataclasses import replace

from sparsearch.results import Outcome, Store, StudyRecord, StudySpec, Trial
from sparsearch.spaces.budget import Budget
from sparsearch.testing.store_conformance import sample_outcome

SMALL = Budget(max_trainable_params=100, text="0.01%")
LARGE = Budget(max_trainable_params=1000, text="0.1%")
SCORES = {
    (SMALL, "s3pet"): (0.80, 0.82),
    (SMALL, "random"): (0.85, 0.83),
    (LARGE, "s3pet"): (0.93, 0.91),
    (LARGE, "random"): (0.90, 0.88),
}
CONFIG = json.dumps({"search": {"strategy": "s3pet"}})


def plan() -> list[tuple[Trial, Outcome]]:
    """2 strategies x 2 budgets x 2 seeds, and both references."""
    cells: list[tuple[str, Budget | None, int, Outcome]] = []
    for seed in (0, 1):
        head = replace(sample_outcome(0.4, structure=False), trainable_params=0)
        full = replace(sample_outcome(0.96, structure=False), trainable_params=1_000_000)
        cells += [("head", None, seed, head), ("full", None, seed, full)]
        for (budget, strategy), scores in SCORES.items():
            params = (budget.get("max_trainable_params") or 0) - 10 - 2 * len(cells)
            outcome = replace(sample_outcome(scores[seed], params), weights=b"weights")
            cells.append((strategy, budget, seed, outcome))
    return [(Trial(n, s, b, seed), outcome) for n, (s, b, seed, outcome) in enumerate(cells)]


def fill(
    url: str, name: str, pairs: list[tuple[Trial, Outcome]], config: str = CONFIG
) -> StudyRecord:
    """Store a study with these outcomes, as a driver would."""
    with Store.open(url, create=True) as store:
        trials = tuple(trial for trial, _ in pairs)
        store.begin_study(StudySpec(name, config, "toy", "trec", "accuracy", 1_000_000, trials))
        store.acquire(name)
        for trial, outcome in pairs:
            store.start(name, trial.number)
            store.finish(name, trial.number, outcome)
        store.release(name)
        return store.find_study(name)


def run_left_out(url: str, name: str, number: int, outcome: Outcome) -> None:
    """What `run --exhaustive` does with a trial that a race has left out."""
    with Store.open(url, create=True) as store:
        store.acquire(name)
        store.requeue(name, [number])
        store.start(name, number)
        store.finish(name, number, outcome)
        store.release(name)
