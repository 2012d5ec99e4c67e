"""What joint selection costs, beside the training of what it selects: TREC with all rows, values in 8, 4 or 2 bits.

The warm start is made before, as every strategy pays for it. The aim is a ratio of 1 to two epochs, evaluation
apart.

    OMP_NUM_THREADS=1 python benchmarks/cost/joint_selection.py --data FOLDER --out joint_selection.json
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import asdict
from pathlib import Path

import torch

from sparsearch.config.reader import read_study, validate_study
from sparsearch.results.records import Trial
from sparsearch.spaces.budget import resolve_all
from sparsearch.workers.trials.execute import Rankings, execute, rank_on
from sparsearch.workers.trials.provenance import environment
from sparsearch.workers.trials.session import open_session

STUDY = Path(__file__).parents[1] / "quality" / "joint_selection.yaml"
BITS = {"bits": [8, 4, 2]}
KINDS = {"lora": {"max_rank": 2, **BITS}, "bitfit": BITS, "lnfit": BITS, "ia3": BITS}


def main() -> int:
    """Rank, train, print and write both times."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data/trec"))
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    files = {
        s: str(options.data.resolve() / f"{s}.jsonl") for s in ("train", "validation", "test")
    }
    settings = {
        "task.data.data_files": files,
        "task.max_train_rows": None,
        "space.kinds": KINDS,
        "train.epochs": options.epochs,
    }
    overrides = [f"{key}={json.dumps(value)}" for key, value in settings.items()]
    sections, problems = validate_study(*read_study(STUDY, overrides))
    assert not problems, problems
    session = open_session(sections["study"])
    (budget,) = resolve_all(session.config.budgets, session.backbone.params)
    session.starts.get(0, ())
    began = time.monotonic()
    ranking = rank_on(session, "linearised", budget, seed=0)
    ranked = time.monotonic() - began
    outcome = execute(session, Trial(0, "linearised", budget, 0), Rankings(lambda _: ranking))
    phases = outcome.environment.phases if outcome.environment else {}
    trained = phases["training"]
    found = {
        "candidates": len(session.space.candidates),
        "rows": len(session.task.train),
        "ranking_seconds": ranked,
        "training_seconds": trained,
        "evaluation_seconds": phases["evaluation"],
        "ratio": ranked / trained,
        "epochs": options.epochs,
        "threads": options.threads,
        "environment": asdict(environment()),
    }
    print(
        f"ranking {ranked:.1f} s, {options.epochs} epochs {trained:.1f} s: {ranked / trained:.2f} times"
    )
    if options.out:
        options.out.write_text(json.dumps(found, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
