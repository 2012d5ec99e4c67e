"""What trials could save by training together: a step over four batches at once, beside four steps in a row.

The most that a pack of trials could save: one rank-1 LoRA on q and v reads all rows, so that the step over four batches
calls as many operations as a step over one. MiniLM on a task's own rows, in the batches that training makes.
Rounds alternate; medians of their ratios.

    python benchmarks/cost/packs.py --data FOLDER --out benchmarks/results/packs.json
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import PreTrainedModel

from sparsearch.config.reader import read_study, validate_study
from sparsearch.search.tasks.task import endless
from sparsearch.search.training.device import autocast, frozen_cast_once
from sparsearch.spaces.attachment.attach import attach_modules
from sparsearch.workers.trials.provenance import environment
from sparsearch.workers.trials.session import Session, open_session

STUDY = Path(__file__).parents[1] / "quality" / "joint_selection.yaml"
KINDS = {"lora": {"max_rank": 1, "on": ["*.attn.[qv]"]}}
CPU = torch.device("cpu")
PACK = 4


def opened(data: Path, task: str) -> Session:
    """MiniLM and the rows of a task."""
    files = {s: str(data.resolve() / task / f"{s}.jsonl") for s in ("train", "validation", "test")}
    settings = {
        "task.data.data_files": files,
        "task.max_train_rows": None,
        "space.kinds": KINDS,
    }
    overrides = [f"{key}={json.dumps(value)}" for key, value in settings.items()]
    sections, problems = validate_study(*read_study(STUDY, overrides))
    assert not problems, problems
    return open_session(sections["study"])


def together(found: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Batches as one, padded to the longest of them."""
    longest = max(batch["input_ids"].shape[1] for batch in found)
    return {
        key: torch.cat(
            [
                pad(b[key], (0, longest - b[key].shape[1])) if b[key].ndim == 2 else b[key]
                for b in found
            ]
        )
        for key in found[0]
        if key != "rows"
    }


def seconds(
    model: PreTrainedModel,
    optimizer: torch.optim.Optimizer,
    steps: Iterable[dict[str, Tensor]],
    precision: str,
) -> float:
    """Of training steps, one for each batch."""
    began = time.perf_counter()
    for batch in steps:
        with autocast(CPU, precision):
            loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return time.perf_counter() - began


def main() -> None:
    """Time them, print the table, keep the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--tasks", nargs="+", default=["trec", "sst2"])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    lines = []
    for task in arguments.tasks:
        session = opened(arguments.data, task)
        model, space = session.model, session.space
        units = [(space.position(c.position), space.kinds[c.kind], 1, 1) for c in space.candidates]
        attachment = attach_modules(model, units)
        optimizer = torch.optim.AdamW(attachment.parameters(), lr=1e-3)
        generator = torch.Generator().manual_seed(0)
        for precision in ("fp32", "bf16"):
            stream = endless(session.task.train, 32, CPU, generator)
            alone: list[float] = []
            packed: list[float] = []
            padded: list[float] = []
            with frozen_cast_once(model, precision):
                for number in range(arguments.rounds + 1):
                    found = [next(stream) for _ in range(PACK)]
                    one = [{k: v for k, v in batch.items() if k != "rows"} for batch in found]
                    whole = together(found)
                    order = [(alone, one), (packed, [whole])]
                    tokens = sum(batch["input_ids"].numel() for batch in one)
                    padded.append(whole["input_ids"].numel() / tokens)
                    for where, steps in order if number % 2 else reversed(order):
                        where.append(seconds(model, optimizer, steps, precision))
            line = {
                "task": task,
                "precision": precision,
                "four steps": statistics.median(alone[1:]),
                "one step over four batches": statistics.median(packed[1:]),
                "tokens of the one step beside those of four": statistics.median(padded[1:]),
                "ratio": statistics.median(
                    p / a for p, a in zip(packed[1:], alone[1:], strict=True)
                ),
            }
            print(line, flush=True)
            lines.append(line)
    if arguments.out:
        found_all = {"lines": lines, "environment": asdict(environment())}
        arguments.out.write_text(json.dumps(found_all, indent=1) + "\n")


if __name__ == "__main__":
    main()
