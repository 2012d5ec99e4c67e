"""What a training step and a first-order search step cost on a language model, beside PEFT in TRL's SFTTrainer.

All work on rank-1 LoRA on q and v, with 8 rows of 128 tokens, of which the last third is the completion. TRL's trainer
runs with its defaults, recomputed activations among them. After each of its steps comes one of each of ours: medians
over the rounds. ``train`` recomputes too (``train.checkpointing``), ``train kept`` does not. Peak memory is that of a
process that does one of them alone, less what it held with the model loaded.

    python benchmarks/cost/language_step.py --model models/gemma/gemma-3-270m-q4_k_m.gguf --out language_step.json
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import datasets
import peft
import psutil
import torch
from transformers import PreTrainedModel, TrainerCallback
from trl import SFTConfig, SFTTrainer  # type: ignore[attr-defined]

from sparsearch.config.study import SearchConfig, TrainConfig
from sparsearch.search.bilevel.search import BilevelSearch, SearchProblem
from sparsearch.search.bilevel.supernet import Supernet
from sparsearch.search.gates.gates import Gates
from sparsearch.search.gates.targets import BudgetSchedule, Targets
from sparsearch.search.tasks.task import Split, Task, endless
from sparsearch.search.training.device import peak_bytes, reset_peak
from sparsearch.search.training.recomputing import prepared
from sparsearch.spaces.backbone.loading import load_model, load_tokenizer
from sparsearch.spaces.space import build_space
from sparsearch.workers.trials.provenance import environment

ROWS, TOKENS, PROMPT = 8, 128, 85
KINDS = {"lora": {"max_rank": 1, "on": ["*.attn.[qv]"]}}
LIMITS = {"train": (0.6, 0.35), "train kept": (None, None), "search": (1.3, None)}
"""Of time and of memory, as multiples of PEFT's."""
CPU = torch.device("cpu")

Step = Callable[[], object]


def load(arguments: argparse.Namespace) -> PreTrainedModel:
    """The model, every weight of which has been read."""
    model = load_model(arguments.model, auto_model="AutoModelForCausalLM")
    with torch.no_grad():
        model(torch.arange(3, 7)[None])
    return model


def rows(vocabulary: int) -> torch.Tensor:
    """(64, tokens) random tokens."""
    return torch.randint(3, vocabulary, (64, TOKENS), generator=torch.Generator().manual_seed(0))


def toy_task(vocabulary: int) -> Task:
    """Completions of random tokens."""
    ids = rows(vocabulary)
    labels = ids.clone()
    labels[:, :PROMPT] = -100
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    split = Split(inputs, torch.full((len(ids),), TOKENS), labels, token_labels=True)
    return Task("toy", "causal-lm", "loss", (), TOKENS, split, split, split)


def trainer(arguments: argparse.Namespace, steps: int, callback: TrainerCallback) -> SFTTrainer:
    """TRL's trainer with PEFT's LoRA, as it comes."""
    model = load(arguments)
    ids = rows(model.config.vocab_size).tolist()
    mask = [0] * PROMPT + [1] * (TOKENS - PROMPT)
    data = datasets.Dataset.from_list([{"input_ids": r, "completion_mask": mask} for r in ids])
    settings = SFTConfig(
        output_dir=tempfile.mkdtemp(), max_steps=steps, per_device_train_batch_size=ROWS, report_to="none",
        use_cpu=True, save_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    adapter = peft.LoraConfig(task_type="CAUSAL_LM", r=1, target_modules=["q_proj", "v_proj"])
    return SFTTrainer(
        model,
        settings,
        train_dataset=data,
        processing_class=load_tokenizer(arguments.model),
        peft_config=adapter,
        callbacks=[callback],
    )


@contextmanager
def opened(arguments: argparse.Namespace, what: str) -> Iterator[Step]:
    """One training step of ours, or one step of a search."""
    model = load(arguments).train(False)
    space = build_space(model, kinds=KINDS)
    task = toy_task(model.config.vocab_size)
    supernet = Supernet(model, space, task.type, arguments.precision)
    costs = torch.tensor([c.params for c in space.candidates])
    problem = SearchProblem(
        task, SearchConfig(batch_size=ROWS), TrainConfig(precision=arguments.precision)
    )
    schedule = BudgetSchedule(Targets(0.5 * space.trainable_params))
    bilevel = BilevelSearch(supernet, Gates(costs), problem, schedule, seed=0)
    number = itertools.count(1)
    weights = list(supernet.attachment.parameters())
    optimizer = torch.optim.AdamW(weights, lr=1e-3, fused=True)
    data = endless(task.train, ROWS, CPU, torch.Generator().manual_seed(0))

    def step() -> None:
        if what == "search":
            bilevel.begin_step(next(number))
            bilevel.step()
            return
        task.behaviour.loss(model, next(data), arguments.precision).backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(weights, 2.0)
        optimizer.step()
        optimizer.zero_grad()

    with prepared(model, arguments.precision, what == "train"):
        yield step


class Rounds(TrainerCallback):  # type: ignore[misc]
    """Times the Trainer's steps, and others after each of them."""

    def __init__(self, others: dict[str, Step]) -> None:
        self.others, self.began = others, 0.0
        self.seconds: dict[str, list[float]] = {"peft": [], **{name: [] for name in others}}

    def on_step_begin(self, *given: Any, **names: Any) -> None:
        """The Trainer's step begins."""
        self.began = time.perf_counter()

    def on_step_end(self, *given: Any, **names: Any) -> None:
        """It ends, and ours come."""
        self.seconds["peft"].append(time.perf_counter() - self.began)
        for name, step in self.others.items():
            started = time.perf_counter()
            step()
            self.seconds[name].append(time.perf_counter() - started)


def measure_time(arguments: argparse.Namespace) -> dict[str, float]:
    """Median seconds of the three steps, taking turns; the first round does not count."""
    with ExitStack() as stack:
        steps = {name: stack.enter_context(opened(arguments, name)) for name in LIMITS}
        rounds = Rounds(steps)
        trainer(arguments, arguments.rounds + 1, rounds).train()
    return {name: statistics.median(taken[1:]) for name, taken in rounds.seconds.items()}


def held() -> int:
    """Resident bytes, once freed blocks have been given back."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    reset_peak(CPU)
    return int(psutil.Process().memory_info().rss)


class Held(TrainerCallback):  # type: ignore[misc]
    """What the process holds when the Trainer begins."""

    def on_train_begin(self, *given: Any, **names: Any) -> None:
        """Before the first step."""
        self.bytes = held()


def measure_memory(arguments: argparse.Namespace) -> int:
    """Peak bytes of a few such steps, beyond those of the model."""
    if arguments.memory_of == "peft":
        callback = Held()
        trainer(arguments, 3, callback).train()
        return peak_bytes(CPU) - callback.bytes
    model = load(arguments)
    before = held()
    del model
    with opened(arguments, arguments.memory_of) as step:
        held()
        for _ in range(3):
            step()
        return peak_bytes(CPU) - before


def main() -> int:
    """Measure, print a table, write JSON; exit 1 if a limit is passed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="a GGUF file, or a folder")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.memory_of:
        print(measure_memory(arguments))
        return 0
    peaks = {}
    for what in ("peft", *LIMITS):
        command = [sys.executable, __file__, "--model", arguments.model]
        command += [f"--precision={arguments.precision}", f"--threads={arguments.threads}"]
        environ = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}
        done = subprocess.run(
            [*command, "--memory-of", what],
            stdout=subprocess.PIPE,
            text=True,
            check=True,
            env=environ,
        )
        peaks[what] = int(done.stdout.splitlines()[-1])
    seconds, good = measure_time(arguments), True
    print(
        f"{'step':>10} {'ms':>7} {'x PEFT':>7} {'limit':>6} {'MiB':>6} {'x PEFT':>7} {'limit':>6}"
    )
    for what, limits in {"peft": (None, None), **LIMITS}.items():
        found = seconds[what] / seconds["peft"], peaks[what] / peaks["peft"]
        good &= all(f <= limit for f, limit in zip(found, limits, strict=True) if limit)
        time_limit, memory_limit = (limit or "" for limit in limits)
        print(
            f"{what:>10} {1000 * seconds[what]:7.0f} {found[0]:7.2f} {time_limit:>6} "
            f"{peaks[what] / 2**20:6.0f} {found[1]:7.2f} {memory_limit:>6}"
        )
    if arguments.out:
        settings = {k: v for k, v in vars(arguments).items() if k not in ("out", "memory_of")}
        rows = {"seconds": seconds, "peak_bytes": peaks}
        document = {"settings": settings, **rows, "environment": asdict(environment())}
        arguments.out.write_text(json.dumps(document, indent=1))
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
