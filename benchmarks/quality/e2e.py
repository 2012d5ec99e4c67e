"""A real language model at equal stored bytes: Gemma 3 270M writes sentences from restaurant facts (E2E).

Contestants x seeds at one budget. Training keeps the epoch with the best validation loss. The test rows are touched
once, at the end: their loss against the first reference, and BLEU and ROUGE-L of what is written against all
references. One JSON line per run; a second call goes on where the first stopped.

    python benchmarks/quality/e2e.py run --gguf FOLDER/gemma-3-270m-q4_k_m.gguf --out quality-e2e.jsonl
    python benchmarks/quality/e2e.py report benchmarks/results/quality-e2e.jsonl
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import time
from collections import defaultdict
from dataclasses import asdict
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from contestants import BYTES
from quality import append, read_lines

from sparsearch.config.reader import read_study, validate_study
from sparsearch.results.records import Trial
from sparsearch.search.tasks.task import load_task
from sparsearch.search.tasks.types.language.text_metrics import text_score
from sparsearch.search.training.evaluate import evaluate
from sparsearch.spaces.attachment.attach import attach, detach
from sparsearch.spaces.attachment.weights_file import load_weights
from sparsearch.spaces.budget import resolve
from sparsearch.workers.trials.execute import execute
from sparsearch.workers.trials.provenance import environment
from sparsearch.workers.trials.session import Session, open_session

CONTESTANTS = ("lora-qv", "random", "linearised", "ia3", "lnfit", "s3pet", "probe")
ROWS = {"train": 256, "validation": 60, "test": 100}
FIGURES = ("validation_loss", "test_loss", "bleu", "rouge_l")


def write_rows(source: Path, out: Path) -> dict[str, str]:
    """Rows drawn once and for all, with all their references; the file of each split."""
    out.mkdir(parents=True, exist_ok=True)
    files = {}
    for split, count in ROWS.items():
        rows = [json.loads(line) for line in (source / f"{split}.jsonl").read_text().splitlines()]
        lines = []
        for row in random.Random(0).sample(rows, count):
            right = row.get("references") or [row["ref"]]
            line = {"prompt": row["mr"] + "\n", "completion": right[0], "references": right}
            lines.append(json.dumps(line))
        files[split] = str(out / f"{split}.jsonl")
        Path(files[split]).write_text("\n".join(lines) + "\n")
    return files


def session_for(contestant: str, files: dict[str, str], arguments: argparse.Namespace) -> Session:
    """Model, rows and space of a contestant."""
    chosen = BYTES[contestant]
    study = {
        "name": "e2e",
        "model": {"path": str(arguments.gguf.parent), "gguf_file": arguments.gguf.name},
        "task": {
            "type": "causal-lm",
            "data": {"path": "json", "data_files": files},
            "prompt": "prompt",
            "completion": "completion",
            "metric": "loss",
            "max_length": 128,
        },
        "space": {"kinds": chosen.space},
        "budgets": {"max_bytes": [arguments.budget]},
        "search": {**chosen.search, "steps": 12, "batch_size": 8},
        "train": {
            "epochs": arguments.epochs,
            "batch_size": 8,
            "precision": arguments.precision,
        },
    }
    sections, problems = validate_study(*read_study(study, ()))
    assert not problems, problems
    return open_session(sections["study"])


def run(contestant: str, seed: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Train one structure, or none; then its losses and what it writes."""
    files = write_rows(arguments.data / "e2e", arguments.out.parent / "e2e-rows")
    session = session_for("lnfit" if contestant == "none" else contestant, files, arguments)
    model, task, precision = session.model, session.task, arguments.precision
    line: dict[str, Any] = {"contestant": contestant, "seed": seed, "budget": arguments.budget}
    began = time.monotonic()
    if contestant == "none":
        losses = [
            -evaluate(model, task, split, precision) for split in (task.validation, task.test)
        ]
        line |= {
            "validation_loss": losses[0],
            "test_loss": losses[1],
            "params": 0,
            "stored_bytes": 0,
        }
    else:
        budget = resolve(session.space.backbone_params, max_bytes=arguments.budget)
        outcome = execute(session, Trial(0, BYTES[contestant].strategy, budget, seed))
        if outcome.structure is None or outcome.weights is None:
            sys.exit(f"{contestant}, seed {seed}: {outcome.state}: {outcome.message}")
        validation, test = outcome.score("validation"), outcome.score("test")
        assert validation is not None and test is not None
        line |= {"validation_loss": -validation, "test_loss": -test}
        line |= {"params": outcome.trainable_params, "stored_bytes": outcome.stored_bytes}
        line["ranking_seconds"] = outcome.ranking[1].seconds if outcome.ranking else 0.0
        line["train_seconds"] = outcome.seconds - line["ranking_seconds"]
        line["structure"] = [[c.position, c.kind, c.size] for c in outcome.structure.candidates]
        attach(model, outcome.structure)
        load_weights(model, safetensors.torch.load(outcome.weights))
    line |= written(session, files, precision)
    detach(model)
    line |= {"seconds": time.monotonic() - began, "threads": torch.get_num_threads()}
    return line | {
        "epochs": arguments.epochs,
        "precision": precision,
        "rows": ROWS,
        "environment": asdict(environment()),
    }


def written(session: Session, files: dict[str, str], precision: str) -> dict[str, float]:
    """BLEU and ROUGE-L of what the model writes after the prompts of the test rows."""
    config = session.config.task.model_copy(
        update={"metric": "bleu", "references": "references", "max_new_tokens": 60}
    )
    task = load_task(config, Path(files["test"]).parent, session.task.tokenizer, 128)
    texts, right = task.behaviour.answers(task, session.model, task.test, precision)
    return {
        "bleu": 100 * text_score("bleu", texts, right),
        "rouge_l": 100 * text_score("rouge-l", texts, right),
    }


def report(lines: list[dict[str, Any]]) -> None:
    """Mean and standard deviation over seeds, the best loss in validation first."""
    found = defaultdict(list)
    for line in lines:
        found[line["budget"], line["contestant"]].append(line)

    def loss(key: tuple[str, str]) -> float:
        return statistics.fmean(line["validation_loss"] for line in found[key])

    columns = "budget, strategy, seeds, validation loss, test loss, BLEU, ROUGE-L, parameters, stored bytes, ranking s"
    print("| " + columns.replace(", ", " | ") + " |")
    print("|---" * 10 + "|")
    for key in sorted(found, key=lambda key: (key[0], loss(key))):
        group = found[key]
        figures = []
        for name in FIGURES:
            values = [line[name] for line in group]
            spread = f" ± {statistics.stdev(values):.3g}" if len(values) > 1 else ""
            figures.append(f"{statistics.fmean(values):.4g}{spread}")
        costs = [
            f"{statistics.fmean(line.get(name, 0) for line in group):,.0f}"
            for name in ("params", "stored_bytes", "ranking_seconds")
        ]
        print("| " + " | ".join([key[0], f"`{key[1]}`", str(len(group)), *figures, *costs]) + " |")


def main() -> int:
    """Run what has not run, or report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    runs = commands.add_parser("run")
    runs.add_argument("--gguf", type=Path, required=True)
    runs.add_argument("--data", type=Path, default=Path("../shared/data"))
    runs.add_argument("--budget", default="0.01%", help="stored bytes, of the backbone's")
    runs.add_argument(
        "--contestants", nargs="+", choices=["none", *BYTES], default=["none", *CONTESTANTS]
    )
    runs.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    runs.add_argument("--epochs", type=int, default=1)
    runs.add_argument("--precision", choices=["fp32", "bf16"], default="bf16")
    runs.add_argument("--threads", type=int, default=1)
    runs.add_argument("--out", type=Path, default=Path("quality-e2e.jsonl"))
    reports = commands.add_parser("report")
    reports.add_argument("file", type=Path)
    arguments = parser.parse_args()
    if arguments.command == "report":
        report(read_lines(arguments.file))
        return 0
    torch.set_num_threads(arguments.threads)
    done = {
        (line["budget"], line["contestant"], line["seed"]) for line in read_lines(arguments.out)
    }
    for seed in arguments.seeds:
        for contestant in arguments.contestants:
            once = contestant == "none" and seed != arguments.seeds[0]
            if once or (arguments.budget, contestant, seed) in done:
                continue
            line = run(contestant, seed, arguments)
            append(arguments.out, line)
            print(
                {name: line[name] for name in ("contestant", "seed", *FIGURES, "seconds")},
                file=sys.stderr,
                flush=True,
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
