"""What the race saves, and how often it changes the recommendation: on simulated studies, and on measured scores.

A measured study is drawn from the judge's results (``benchmarks/results/quality-trec.jsonl``, SST-2's and RTE's): five
contestants at three budgets of one task, each with its best learning rate, and the scores of seeds 0, 1 and 2 as they
were measured. There the truth is the mean over those seeds.

    python benchmarks/workers/race.py --studies 200 --out race.json
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from sparsearch.testing.simulated_scores import StudyScores, race, simulated_scores
from sparsearch.workers.scheduling.race import ALLOWED
from sparsearch.workers.trials.provenance import environment

RESULTS = Path(__file__).resolve().parents[1] / "results"
SEEDS = (0, 1, 2)
STRATEGIES, BUDGETS = 5, 3

Table = dict[str, dict[str, dict[int, tuple[float, float]]]]
"""Budget -> contestant -> seed -> score on validation, trained parameters."""


def measured_tables() -> list[Table]:
    """A table for each of the judge's files of one task."""
    return [_table(RESULTS / f"quality-{task}.jsonl") for task in ("rte", "sst2", "trec")]


def _table(file: Path) -> Table:
    runs: dict[tuple[str, str, float], dict[int, list[tuple[float, float]]]] = {}
    for line in file.read_text().splitlines():
        run = json.loads(line)
        cell = run["cell"]
        if run["state"] == "ok" and cell["budget"]:
            key = cell["budget"], cell["contestant"], cell["multiple"]
            seeds = runs.setdefault(key, defaultdict(list))
            seeds[cell["seed"]].append((run["validation"], run["params"]))
    table: Table = defaultdict(dict)
    best: dict[tuple[str, str], float] = {}
    for (budget, contestant, _), seeds in runs.items():
        if not set(SEEDS) <= set(seeds):
            continue
        means = {s: tuple(map(statistics.fmean, zip(*seeds[s], strict=True))) for s in SEEDS}
        mean = statistics.fmean(score for score, _ in means.values())
        if mean > best.get((budget, contestant), -1.0):
            best[budget, contestant] = mean
            table[budget][contestant] = means  # type: ignore[assignment]
    return table


def measured_scores(tables: list[Table], rng: np.random.Generator) -> StudyScores:
    """A study drawn from what was measured."""
    while True:
        table = tables[rng.integers(len(tables))]
        count = min(BUDGETS, len(table))
        budgets = [str(b) for b in rng.choice(sorted(table), count, replace=False)]
        everywhere = sorted(set.intersection(*(set(table[b]) for b in budgets)))
        if len(everywhere) >= 3:
            break
    size = min(STRATEGIES, len(everywhere))
    chosen = [str(c) for c in rng.choice(everywhere, size, replace=False)]
    cells = np.array([[[table[b][c][s] for s in SEEDS] for b in budgets] for c in chosen])
    return StudyScores(cells[..., 0].mean(2), cells[..., 0], cells[..., 1].mean(2))


def measure(draw: Callable[[], StudyScores], studies: int, error: float) -> dict[str, Any]:
    """Race through studies, and compare with their exhaustive recommendations."""
    shares, losses, changed, answers = list[float](), list[float](), 0, 0
    for _ in range(studies):
        study = draw()
        raced, full = race(study, error), study.recommended()
        shares.append(raced.share)
        changed += raced.recommended != full
        answers += len(full)
        losses += [
            float(study.truth[a, b] - study.truth[r, b])
            for b, (a, r) in enumerate(zip(full, raced.recommended, strict=True))
            if a != r
        ]
    return {
        "error": error,
        "studies": studies,
        "share_of_trials": statistics.fmean(shares),
        "studies_changed": changed / studies,
        "recommendations_changed": len(losses) / answers,
        "points_lost": 100 * statistics.fmean(losses) if losses else 0.0,
    }


def main() -> None:
    """Measure, print the table, and write it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--studies", type=int, default=200)
    parser.add_argument("--errors", type=float, nargs="+", default=[0.01, ALLOWED, 0.1])
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    tables, started, rows = measured_tables(), time.monotonic(), []
    print(
        "| studies | allowed | trials run | studies changed | recommendations changed | points lost |"
    )
    print("|---|---|---|---|---|---|")
    for error in asked.errors:
        for kind in ("simulated", "measured"):
            rng = np.random.default_rng(0)

            def draw(kind: str = kind, rng: np.random.Generator = rng) -> StudyScores:
                return (
                    simulated_scores(rng) if kind == "simulated" else measured_scores(tables, rng)
                )

            row = {"kind": kind, **measure(draw, asked.studies, error)}
            rows.append(row)
            print(
                f"| {kind} | {error:.1%} | {row['share_of_trials']:.2f} | {row['studies_changed']:.1%} "
                f"| {row['recommendations_changed']:.1%} | {row['points_lost']:+.2f} |",
                flush=True,
            )
    if asked.out is not None:
        seconds = round(time.monotonic() - started, 1)
        document = {"rows": rows, "seconds": seconds, "environment": asdict(environment())}
        asked.out.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
