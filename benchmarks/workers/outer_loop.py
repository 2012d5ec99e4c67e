"""How many trials does the outer loop need where random search needs many? On a front that is known, simulated.

The front of score against budget, the settings that matter and the noise are those of ``SyntheticFront``. What
counts is the hypervolume of the noise-free scores of the trials so far: score above what uniform LoRA reaches at the
lowest budget, over the logarithm of the parameters, as a share of the best there is. Beside it, that of the
trials which a user would choose by their noisy scores.

    python benchmarks/workers/outer_loop.py --samplers random tpe gp --seeds 20 --out outer_loop.json
    python benchmarks/workers/outer_loop.py --report outer_loop.json
    python benchmarks/workers/outer_loop.py --proposals --samplers tpe gp           # these two for docs/scaling.md
    python benchmarks/workers/outer_loop.py --scale 1000 --trials 5000 --samplers random
"""

from __future__ import annotations

import argparse
import json
import math
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import optuna

from sparsearch.config.study import StudyConfig
from sparsearch.results.records import Outcome, Trial
from sparsearch.results.store.store import Store
from sparsearch.spaces.budget import Budget, resolve_all
from sparsearch.testing.simulate import simulate
from sparsearch.testing.simulated_runner import Failures, SimulatedRunner, SyntheticFront
from sparsearch.workers.callbacks import StudyCallbacks
from sparsearch.workers.scheduling.early_stopper import EarlyStopper
from sparsearch.workers.scheduling.optuna_scheduler import OptunaScheduler, Priors, StudyState
from sparsearch.workers.scheduling.search_space import SearchSpace
from sparsearch.workers.trials.provenance import environment

GOAL = 0.95
FLOOR = 88.0
"""Points of uniform LoRA on TREC at 0.0035%, docs/results/outer-loop.md."""

TUNE: dict[str, Any] = {
    "train.lr": {"from": 0.002, "to": 0.2, "log": True},
    "search.alpha_lr": {"from": 0.01, "to": 0.3, "log": True},
    "search.steps": {"from": 20, "to": 300},
    "search.start": ["zero", "probe"],
}


def study(sampler: str, trials: int, seed: int, **outer: Any) -> StudyConfig:
    """A study of proposals alone, but for the untuned search at three budgets."""
    return StudyConfig.model_validate(
        {
            "name": "front",
            "model": {"path": "none"},
            "task": {"name": "none", "data": {"path": "json"}, "text": ["text"]},
            "space": {"preset": "fine"},
            "budgets": {"max_trainable_params": {"from": "0.0035%", "to": "0.5%"}},
            "outer": {"sampler": sampler, "trials": trials, "tune": TUNE, **outer},
            "baselines": [],
            "seeds": [seed],
        }
    )


def area(points: Sequence[tuple[float, float]]) -> float:
    """The area under a staircase of (place of the budget, score), above the floor."""
    total, best, before = 0.0, FLOOR, 0.0
    for place, score in [*sorted(points), (1.0, float("inf"))]:
        total += (min(place, 1.0) - before) * (best - FLOOR)
        best, before = max(best, score), max(0.0, min(place, 1.0))
    return total


def whole(world: SyntheticFront) -> float:
    """The area under the front itself."""
    places = [i / 2000 for i in range(2001)]
    best = []
    for place in places:
        params = round(world.low * (world.high / world.low) ** place)
        best.append((place, world.best(params)))
    return area(best)


class Curve(StudyCallbacks):
    """The hypervolume after each trial."""

    def __init__(self, world: SyntheticFront) -> None:
        self.world, self.whole = world, whole(world)
        self.front: list[tuple[float, float]] = []
        self.seen: list[tuple[float, float, float]] = []
        self.shares: list[float] = []

    def finished(self, trial: Trial, outcome: Outcome) -> None:
        """A trial's true score is known here alone."""
        seen = outcome.score("validation")
        if seen is not None:
            place = min(1.0, max(0.0, self.world.place(outcome.trainable_params)))
            true = self.world.score(trial)
            self.seen.append((place, seen, true))
            if not any(p <= place and s >= true for p, s in self.front):
                beaten = [(p, s) for p, s in self.front if p >= place and s <= true]
                self.front = [point for point in self.front if point not in beaten]
                self.front.append((place, true))
        self.shares.append(area(self.front) / self.whole)

    def chosen(self, trials: int) -> float:
        """The same of the front that a user sees."""
        best, front = 0.0, []
        for place, seen, true in sorted(self.seen[:trials]):
            if seen > best:
                best = seen
                front.append((place, true))
        return area(front) / self.whole


def by_chance(world: SyntheticFront, trials: int, seed: int) -> Iterator[Trial]:
    """Random search in the same space."""
    stream = random.Random(seed)
    for number in range(trials):
        params = round(world.low * (world.high / world.low) ** stream.random())
        settings: list[tuple[str, Any]] = []
        for path, allowed in TUNE.items():
            if isinstance(allowed, list):
                settings.append((path, stream.choice(allowed)))
            elif allowed.get("log"):
                power = stream.uniform(math.log(allowed["from"]), math.log(allowed["to"]))
                settings.append((path, math.exp(power)))
            else:
                settings.append((path, stream.randint(allowed["from"], allowed["to"])))
        yield Trial(number, "s3pet", Budget(max_trainable_params=params), seed, tuple(settings))


def race(sampler: str, trials: int, seed: int, noise: float) -> dict[str, Any]:
    """One study with one worker."""
    world = SyntheticFront(seed=seed, noise=noise)
    curve = Curve(world)
    started = time.monotonic()
    if sampler == "random":  # learns nothing, so needs neither driver nor store
        for trial in by_chance(world, trials, seed):
            curve.finished(trial, world.course(trial).outcome)
    else:
        with (
            tempfile.TemporaryDirectory() as folder,
            Store.open(Path(folder) / "study.db", create=True) as store,
        ):
            simulate(study(sampler, trials, seed), store, SimulatedRunner(world), curve)
    needed = next((n for n, share in enumerate(curve.shares, 1) if share >= GOAL), None)
    at = [
        n for n in (10, 20, 40, 60, 100, 150, 200, 300, 600, 1000, 3000) if n <= len(curve.shares)
    ]
    return {
        "sampler": sampler,
        "seed": seed,
        "trials": len(curve.shares),
        "needed": needed,
        "seconds": time.monotonic() - started,
        "share": {n: curve.shares[n - 1] for n in at},
        "chosen": {n: curve.chosen(n) for n in at},
    }


def scale(workers: int, trials: int, sampler: str) -> dict[str, Any]:
    """One large study with failures and early stopping: what bounds it."""
    world = SyntheticFront(seconds=300.0)
    failures = Failures(oom=0.01, nan=0.01, killed=0.02, late=0.01, slow=0.02)
    runner = SimulatedRunner(world, [1.0] * workers, failures)
    spent: dict[str, float] = {}
    proposals: list[float] = []

    def timed(owner: Any, name: str, label: str) -> None:
        inner = getattr(owner, name)

        def outer(*arguments: Any, **named: Any) -> Any:
            began = time.process_time()
            try:
                return inner(*arguments, **named)
            finally:
                passed = time.process_time() - began
                spent[label] = spent.get(label, 0.0) + passed
                if label == "proposals":
                    proposals.append(passed)

        setattr(owner, name, outer)

    timed(OptunaScheduler, "_suggest", "proposals")
    timed(EarlyStopper, "keeps_up", "early stopping")
    for name in ("add_trial", "start", "finish", "renew"):
        timed(Store, name, "database")
    started, began = time.perf_counter(), time.process_time()
    with (
        tempfile.TemporaryDirectory() as folder,
        Store.open(Path(folder) / "study.db", create=True) as store,
    ):
        record = simulate(study(sampler, trials, 0, early_stop="asha"), store, runner)
        states = [t.state for t in store.trials("front")]
        size = sum(f.stat().st_size for f in Path(folder).iterdir())
    seconds, cpu = time.perf_counter() - started, time.process_time() - began
    tenth = max(1, len(proposals) // 10)
    return {
        "workers": workers,
        "sampler": sampler,
        "trials": record.trials,
        "states": {state: states.count(state) for state in sorted(set(states))},
        "seconds": seconds,
        "processor_seconds": cpu,
        "virtual_seconds": runner.now(),
        "processor_ms_per_trial": {k: 1000 * v / record.trials for k, v in spent.items()}
        | {"all": 1000 * cpu / record.trials},
        "proposal_ms": {
            "first tenth": 1000 * statistics.fmean(proposals[:tenth]),
            "last tenth": 1000 * statistics.fmean(proposals[-tenth:]),
        },
        "database_bytes": size,
    }


def proposal_times(sampler: str) -> list[dict[str, Any]]:
    """Processor time of one proposal, by what the loop knows."""
    world = SyntheticFront()
    config = study(sampler, 100_000, 0)
    backbone_params = 22_713_216
    budgets = resolve_all(config.budgets, backbone_params)
    rows = []
    for told, running in ((100, 0), (1000, 0), (1000, 1000), (10_000, 1000)):
        proposals = SearchSpace(config, budgets, backbone_params)
        loop = OptunaScheduler(
            config,
            proposals,
            StudyState(0, queued=list(by_chance(world, running, 2))),
            print,
            Priors(lambda _: None),
        )
        for trial in by_chance(world, told, 1):
            loop.tell(trial, world.course(trial).outcome)
        for _ in range(running):
            loop.ask(lambda trial: True)
        times = []
        for number in range(4):
            began = time.process_time()
            loop._suggest(told + number, told + number)
            times.append(1000 * (time.process_time() - began))
        rows.append({"sampler": sampler, "told": told, "running": running, "ms": min(times[1:])})
        print(f"| `{sampler}` | {told:,} | {running:,} | {rows[-1]['ms']:.0f} ms |", flush=True)
    return rows


def main() -> None:
    """EarlyStopper the samplers, or run one large study."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samplers", nargs="+", default=["random", "tpe"])
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--trials", type=int, nargs="+", default=[3000, 300], help="per sampler")
    parser.add_argument("--noise", type=float, default=0.7, help="points, between seeds")
    parser.add_argument("--scale", type=int, help="workers of one large study")
    parser.add_argument("--proposals", action="store_true", help="time what a proposal takes")
    parser.add_argument("--report", type=Path, nargs="+", help="print the table of such files")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    document: dict[str, Any] = {"environment": asdict(environment()), "optuna": optuna.__version__}
    rows: list[dict[str, Any]] = []
    if arguments.scale:
        document["scale"] = scale(arguments.scale, arguments.trials[0], arguments.samplers[-1])
        print(json.dumps(document["scale"], indent=1))
        write(arguments.out, document)
        return
    if arguments.proposals:
        document["proposals"] = [r for s in arguments.samplers for r in proposal_times(s)]
        write(arguments.out, document)
        return
    if arguments.report:
        rows = [row for file in arguments.report for row in json.loads(file.read_text())["rows"]]
    else:
        document |= {"goal": GOAL, "floor": FLOOR, "noise": arguments.noise, "rows": rows}
        for sampler, trials in zip(arguments.samplers, arguments.trials, strict=True):
            for seed in range(arguments.seeds):
                rows.append(race(sampler, trials, seed, arguments.noise))
                print(sampler, seed, rows[-1]["needed"], file=sys.stderr, flush=True)
                write(arguments.out, document)
    print(
        "| sampler | trials needed: median (reached) | share after 40 | 100 | 300 | chosen after 100 | s per trial |"
    )
    for sampler in dict.fromkeys(row["sampler"] for row in rows):
        print(line(sampler, [row for row in rows if row["sampler"] == sampler]))


def write(out: Path | None, document: dict[str, Any]) -> None:
    """The JSON so far."""
    if out is not None:
        out.write_text(json.dumps(document, indent=1) + "\n")


def line(sampler: str, rows: Sequence[dict[str, Any]]) -> str:
    """A sampler's row; a seed that never got there counts as infinitely late."""
    needed = statistics.median_low(r["needed"] or float("inf") for r in rows)
    reached = sum(r["needed"] is not None for r in rows)

    def mean(key: str, after: int) -> str:
        values = [v for r in rows if (v := r[key].get(after, r[key].get(str(after)))) is not None]
        return f"{statistics.fmean(values):.3f}" if values else ""

    seconds = statistics.fmean(r["seconds"] / r["trials"] for r in rows)
    cells = [f"{needed:g} ({reached} of {len(rows)} within {max(r['trials'] for r in rows)})"]
    cells += [mean("share", n) for n in (40, 100, 300)]
    return f"| `{sampler}` | " + " | ".join([*cells, mean("chosen", 100), f"{seconds:.2f}"]) + " |"


if __name__ == "__main__":
    main()
