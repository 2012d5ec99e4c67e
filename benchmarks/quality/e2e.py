"""A real language model at equal stored bytes: Gemma 3 270M writes sentences from restaurant facts (E2E).

Contestants x seeds at one budget. With several multiples of the default rates, each contestant takes the one with the
best validation loss under its first seed; all of them train what one ranking chose, made for the first. Training keeps
the epoch with the best validation loss; then the test rows: their loss against the first reference, and BLEU and
ROUGE-L of what is written against all references. One JSON line per run; a second call goes on where the first
stopped.

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
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from contestants import BYTES
from quality import append, read_lines

from sparsearch.config.reader import read_study, validate_study
from sparsearch.config.train import TrainConfig
from sparsearch.results.records import Trial
from sparsearch.search.tasks.task import load_task
from sparsearch.search.tasks.types.language.text_metrics import text_score
from sparsearch.search.training.evaluate import evaluate
from sparsearch.spaces.attachment.attach import attach, detach
from sparsearch.spaces.attachment.weights_file import load_weights
from sparsearch.spaces.budget import resolve
from sparsearch.spaces.ranking import Ranking
from sparsearch.workers.trials.execute import Rankings, execute
from sparsearch.workers.trials.provenance import environment
from sparsearch.workers.trials.session import Session, open_session

CONTESTANTS = ("lora-qv", "random", "linearised", "ia3", "lnfit", "s3pet", "probe")
ROWS = {"train": 256, "validation": 60, "test": 100}
LINEARISED = {"rows": 64, "outputs": 4}
"""A backward pass for each output and batch: the defaults, eight times as many on these rows, had not ended after ten
minutes, where a training takes two or three."""
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


def session_for(
    contestant: str, multiple: float, files: dict[str, str], arguments: argparse.Namespace
) -> Session:
    """Model, rows and space of a contestant, with a multiple of the default rates."""
    chosen, rates = BYTES[contestant], TrainConfig()
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
        "search": {**chosen.search, "steps": 12, "batch_size": 8, "linearised": LINEARISED},
        "train": {
            "epochs": arguments.epochs,
            "batch_size": 8,
            "precision": arguments.precision,
            "lr": rates.lr * multiple,
            "kind_lr": {kind: rate * multiple for kind, rate in rates.kind_lr.items()},
        },
    }
    sections, problems = validate_study(*read_study(study, ()))
    assert not problems, problems
    return open_session(sections["study"])


def run(
    contestant: str,
    seed: int,
    multiple: float,
    arguments: argparse.Namespace,
    rankings: dict[tuple[str, int], Ranking],
) -> dict[str, Any]:
    """Train one structure, or none; then its losses and what it writes."""
    files = write_rows(arguments.data / "e2e", arguments.out.parent / "e2e-rows")
    named = "lnfit" if contestant == "none" else contestant
    session = session_for(named, multiple, files, arguments)
    model, task, precision = session.model, session.task, arguments.precision
    line: dict[str, Any] = {"contestant": contestant, "seed": seed, "budget": arguments.budget}
    line["multiple"] = multiple
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
        trial = Trial(0, BYTES[contestant].strategy, budget, seed)
        outcome = execute(session, trial, Rankings(lambda _: rankings.get((contestant, seed))))
        reused = (contestant, seed) in rankings
        if outcome.ranking:
            rankings[contestant, seed] = outcome.ranking[1]
        if outcome.structure is None or outcome.weights is None:
            sys.exit(f"{contestant}, seed {seed}: {outcome.state}: {outcome.message}")
        validation, test = outcome.score("validation"), outcome.score("test")
        assert validation is not None and test is not None
        line |= {"validation_loss": -validation, "test_loss": -test}
        line |= {"params": outcome.trainable_params, "stored_bytes": outcome.stored_bytes}
        line["ranking_seconds"] = outcome.ranking[1].seconds if outcome.ranking else 0.0
        line["train_seconds"] = outcome.seconds - (0.0 if reused else line["ranking_seconds"])
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


def best_multiple(lines: Sequence[Mapping[str, Any]], seed: int) -> float:
    """The multiple with the best validation loss under a seed."""
    tried = [line for line in lines if line["seed"] == seed]
    best = min(tried, key=lambda line: float(line["validation_loss"]))
    return float(best.get("multiple", 1.0))


def report(lines: list[dict[str, Any]]) -> None:
    """Mean and standard deviation over seeds at the chosen rates, the best loss in validation first."""
    runs = defaultdict(list)
    for line in lines:
        runs[line["budget"], line["contestant"]].append(line)
    found = {}
    for key, group in runs.items():
        multiple = best_multiple(group, min(line["seed"] for line in group))
        found[key] = [line for line in group if line.get("multiple", 1.0) == multiple]

    def loss(key: tuple[str, str]) -> float:
        return statistics.fmean(line["validation_loss"] for line in found[key])

    columns = (
        "budget, strategy, rates, seeds, validation loss, test loss, BLEU, ROUGE-L, parameters, "
        "stored bytes, ranking s"
    )
    print("| " + columns.replace(", ", " | ") + " |")
    print("|---" * 11 + "|")
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
        named = [key[0], f"`{key[1]}`", f"x{group[0].get('multiple', 1):g}", str(len(group))]
        print("| " + " | ".join([*named, *figures, *costs]) + " |")


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
    runs.add_argument(
        "--multiples", nargs="+", type=float, default=[1.0], help="of the default rates, to try"
    )
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
    lines = read_lines(arguments.out)
    rankings: dict[tuple[str, int], Ranking] = {}

    def runs_of(contestant: str) -> list[dict[str, Any]]:
        mine = (arguments.budget, contestant)
        return [line for line in lines if (line["budget"], line["contestant"]) == mine]

    def once(contestant: str, seed: int, multiple: float) -> None:
        if (seed, multiple) in {(r["seed"], r.get("multiple", 1.0)) for r in runs_of(contestant)}:
            return
        lines.append(run(contestant, seed, multiple, arguments, rankings))
        append(arguments.out, lines[-1])
        shown = {name: lines[-1][name] for name in ("contestant", "seed", "multiple", *FIGURES)}
        print(shown, file=sys.stderr, flush=True)

    first, *others = arguments.seeds
    for contestant in arguments.contestants:
        for multiple in [1.0] if contestant == "none" else arguments.multiples:
            once(contestant, first, multiple)
    for seed in others:
        for contestant in arguments.contestants:
            if contestant != "none":
                once(contestant, seed, best_multiple(runs_of(contestant), first))
    return 0


if __name__ == "__main__":
    sys.exit(main())
