"""The results room with a million structures: latency of reads, outcomes written per second, both at once.

The database is made once and reused: filled by bulk insert as the first version stored it, then migrated. Every
question goes through the store and reads the structure; every outcome is one transaction, with a structure of
ten placements, two measurements and 20 kB of weights.

    python benchmarks/store/store.py --db store.db --out store.json                              # 1,000,000, 8 GB
    python benchmarks/store/store.py --db postgresql:///sparsearch --studies 10 --out store.json # 100,000
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from sqlalchemy import text
from store_fill import TASKS, fill, group, random_outcome, study_name

from sparsearch.errors import MissingStoreError, SparsearchError, StoreError
from sparsearch.results.records import BestQuery, Outcome, StudySpec, Trial
from sparsearch.results.store.connection.database import open_database
from sparsearch.results.store.connection.urls import without_password
from sparsearch.results.store.store import Store
from sparsearch.results.store.writing import outcomes
from sparsearch.results.store.writing.lease import Claim, Owner
from sparsearch.spaces.budget import Budget

BEST_LIMIT, PARETO_LIMIT, WRITE_LIMIT = 10.0, 100.0, 1000.0
"""Milliseconds at the 99th percentile, twice; outcomes per second. The first is for what names model and task."""

NAMED = (
    "best",
    "best within parameters",
    "best that few have",
    "best that none has",
    "best within both",
)
PARTS = ("reads", "writes", "together")
WEIGHTS = 20_000
WRITTEN = "written-"
Question = Callable[[Store, random.Random], object]


def questions(studies: int, smallest: int) -> dict[str, Question]:
    """What is asked, by name; ``smallest`` is the fewest parameters that a structure has."""

    def asked(draw: random.Random) -> dict[str, str]:
        model, task = group(draw.randrange(studies))
        return {"model": model, "task": task}

    def some(draw: random.Random) -> int:
        return int(smallest * draw.choice((1.5, 3, 6, 12, 24)))

    def share(draw: random.Random) -> str:
        return f"{draw.uniform(50, 100):.0f}%"

    def study(draw: random.Random) -> str:
        return study_name(draw.randrange(studies))

    return {
        "best": lambda s, d: s.best(**asked(d)),
        "best within parameters": lambda s, d: s.best(**asked(d), max_trainable_params=some(d)),
        "best that few have": lambda s, d: s.best(**asked(d), max_trainable_params=smallest),
        "best that none has": lambda s, d: s.best(**asked(d), max_trainable_params=smallest - 1),
        "best within both": lambda s, d: s.best(
            **asked(d), max_trainable_params=some(d), max_inference_flops=share(d)
        ),
        "best, any model": lambda s, d: s.best(task=d.choice(TASKS), max_trainable_params=some(d)),
        "best of a study": lambda s, d: s.best(study=study(d), max_trainable_params=some(d)),
        "best of all": lambda s, d: s.best_of_each_task(
            BestQuery(limits={"max_trainable_params": some(d)})
        ),
        "sparse": lambda s, d: s.best(**asked(d), min_weight_sparsity="50%"),
        "pareto": lambda s, d: s.pareto(study(d)),
        "one study": lambda s, d: s.find_study(study(d)),
        "all studies": lambda s, d: s.studies(),
    }


def row(seconds: Sequence[float], **more: Any) -> dict[str, Any]:
    """Percentiles in milliseconds."""
    times = sorted(1000 * s for s in seconds)
    p50, p99 = (times[min(len(times) - 1, int(len(times) * q))] for q in (0.5, 0.99))
    return {"count": len(times), "p50_ms": p50, "p99_ms": p99, "max_ms": times[-1], **more}


def shown(name: str, values: dict[str, Any]) -> None:
    """A line of the table."""
    cells = [f"{values[key]:9.2f}" for key in ("p50_ms", "p99_ms", "max_ms", "cpu_ms")]
    cells += [f"{values['per_second']:9,.0f}"] if "per_second" in values else []
    print(f"{name:26} {values['count']:7,} {' '.join(cells)}")


def measure_reads(db: str, asked: dict[str, Question], seconds: float) -> dict[str, Any]:
    """Each question alone, for so many seconds, once at least."""
    print(f"\n{'read, ms':26} {'count':>7} {'p50':>9} {'p99':>9} {'max':>9} {'CPU':>9}")
    rows = {}
    with Store.open(db, create=False) as store:
        for name, ask in asked.items():
            draw = random.Random(0)
            ask(store, draw)
            taken: list[float] = []
            until, cpu = time.perf_counter() + seconds, time.process_time()
            while not taken or time.perf_counter() < until:
                started = time.perf_counter()
                ask(store, draw)
                taken.append(time.perf_counter() - started)
            each = 1000 * (time.process_time() - cpu) / len(taken)
            rows[name] = row(taken, cpu_ms=each)
            shown(name, rows[name])
    return rows


def new_study(store: Store, trials: int) -> str:
    """A study to write to."""
    name = f"{WRITTEN}{time.time_ns()}"
    budget = Budget(max_trainable_params=10**6)
    listed = tuple(Trial(number, "s3pet", budget, number) for number in range(trials))
    model, task = group(0)
    store.begin_study(StudySpec(name, "{}", model, task, "accuracy", 10**9, listed))
    return name


def new_outcomes(count: int) -> list[Outcome]:
    """Outcomes with structures that nobody has stored yet."""
    fresh = time.time_ns()
    draw = random.Random(fresh)
    weights = draw.randbytes(WEIGHTS)
    return [replace(random_outcome(draw, fresh), weights=weights) for _ in range(count)]


def measure_writes(db: str, count: int) -> dict[str, Any]:
    """Outcomes per second: one transaction each, 100 a transaction, and with an fsync at each commit."""
    print(
        f"\n{'write':26} {'count':>7} {'p50 ms':>9} {'p99 ms':>9} {'max':>9} {'CPU':>9} {'per s':>9}"
    )
    rows = {}
    database = open_database(db, create=True)
    owner = Owner.current()
    store = Store(database, owner)
    variants = {"one transaction each": 1, "100 a transaction": 100}
    if database.engine.dialect.name == "sqlite":
        variants["one each, synced (FULL)"] = 1
    for name, batch in variants.items():
        made, study = new_outcomes(count), new_study(store, count)
        if "synced" in name:
            connection = database.engine.raw_connection()
            connection.cursor().execute("PRAGMA synchronous = FULL")
            connection.close()
        taken = []
        cpu = time.process_time()
        for first in range(0, count, batch):
            started = time.perf_counter()
            with database.transaction() as transaction:
                for number in range(first, min(count, first + batch)):
                    outcomes.finish(transaction, Claim(study, owner), number, made[number])
            taken.append(time.perf_counter() - started)
        each = 1000 * (time.process_time() - cpu) / count
        rows[name] = row(taken, cpu_ms=each, count=count, per_second=count / sum(taken))
        shown(name, rows[name])
    store.close()
    return rows


def read_for(
    db: str, studies: int, smallest: int, seconds: float, seed: int, start: Any, answers: Any
) -> None:
    """One of several readers, in a process of its own: random questions, one after another."""
    asked = questions(studies, smallest)
    quick = [name for name in asked if name.startswith("best ")]
    draw = random.Random(seed)
    taken: dict[str, list[float]] = {"best": [], "pareto": []}
    errors = []
    with Store.open(db, create=False) as store:
        start.wait()
        until = time.perf_counter() + seconds
        while time.perf_counter() < until:
            name = "pareto" if draw.random() < 0.05 else draw.choice(quick)
            started = time.perf_counter()
            try:
                asked[name](store, draw)
            except SparsearchError as error:
                errors.append(str(error))
            taken[name.split()[0]].append(time.perf_counter() - started)
    answers.put((taken, errors))


def write_for(db: str, count: int, seconds: float, start: Any, answers: Any) -> None:
    """The writer, in a process of its own."""
    made, taken, errors = new_outcomes(count), [], []
    with Store.open(db, create=True) as store:
        study = new_study(store, count)
        start.wait()
        until = time.perf_counter() + seconds
        for number, outcome in enumerate(made):
            started = time.perf_counter()
            if started > until:
                break
            try:
                store.finish(study, number, outcome)
            except SparsearchError as error:
                errors.append(str(error))
            taken.append(time.perf_counter() - started)
    answers.put(({"write": taken}, errors))


def measure_together(
    db: str, studies: int, smallest: int, readers: int, seconds: float
) -> dict[str, Any]:
    """Readers and a writer at once, each as fast as it can."""
    print(
        f"\n{f'{readers} readers, 1 writer, ms':26} {'count':>7} {'p50':>9} {'p99':>9} {'max':>9}"
    )
    spawn = multiprocessing.get_context("spawn")
    start, answers = spawn.Barrier(readers + 1), spawn.Queue()
    shared = (seconds, start, answers)
    processes = [spawn.Process(target=write_for, args=(db, int(2000 * seconds), *shared))]
    for seed in range(readers):
        reads = (db, studies, smallest, seconds, seed, start, answers)
        processes.append(spawn.Process(target=read_for, args=reads))
    for process in processes:
        process.start()
    taken: dict[str, list[float]] = {}
    errors: list[str] = []
    for _ in processes:
        times, failed = answers.get()
        errors += failed
        for name, values in times.items():
            taken.setdefault(name, []).extend(values)
    for process in processes:
        process.join()
    rows: dict[str, Any] = {name: row(values, cpu_ms=0.0) for name, values in taken.items()}
    for name, values in rows.items():
        shown(name, values)
    rows["written_per_second"] = len(taken["write"]) / seconds
    rows["errors"] = errors
    print(f"written per second {rows['written_per_second']:.0f}, errors {len(errors)}")
    return rows


def forget_written(db: str) -> None:
    """Delete what earlier runs wrote; the file keeps its size, and reuses the room."""
    named = f"name LIKE '{WRITTEN}%'"
    written = f"study_id IN (SELECT id FROM studies WHERE {named})"
    database = open_database(db, create=True)
    with database.transaction() as connection:
        hashes = connection.execute(text(f"SELECT structure_hash FROM trials WHERE {written}"))
        gone = [{"gone": name} for name in hashes.scalars() if name is not None]
        for table in ("measurements", "weights"):
            trials = f"SELECT id FROM trials WHERE {written}"
            connection.execute(text(f"DELETE FROM {table} WHERE trial_id IN ({trials})"))
        connection.execute(text(f"DELETE FROM trials WHERE {written}"))
        connection.execute(text(f"DELETE FROM studies WHERE {named}"))
        for table, column in (("placements", "structure_hash"), ("structures", "hash")):
            if gone:
                connection.execute(text(f"DELETE FROM {table} WHERE {column} = :gone"), gone)
    database.engine.dispose()


def prepare(db: str, studies: int, trials: int) -> tuple[dict[str, Any], int]:
    """Fill the database unless it is filled; what is in it, and the fewest parameters of a structure."""
    facts: dict[str, Any] = {}
    try:
        Store.open(db, create=False).close()
    except MissingStoreError:
        facts = fill(db, studies, trials)
    except StoreError:
        Store.open(db, create=True).close()  # of an older revision
    forget_written(db)
    with open_database(db, create=False).reading() as session:
        counted = "SELECT COUNT(*), MIN(trainable_params) FROM structures"
        structures, smallest = session.execute(text(counted)).one()
        fronts = session.execute(text("SELECT COUNT(*) FROM trials WHERE on_front"))
        facts |= {"structures": structures, "on_fronts": fronts.scalar_one()}
        facts["studies"] = session.execute(text("SELECT COUNT(*) FROM studies")).scalar_one()
    if facts["studies"] != studies:
        raise SystemExit(f"{without_password(db)} holds {facts['studies']} studies, not {studies}")
    return facts, smallest


def main() -> int:
    """Measure, print tables, write JSON; exit 1 if a limit is passed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--db", required=True, help="an SQLite file, or a PostgreSQL URL")
    parser.add_argument("--studies", type=int, default=100)
    parser.add_argument("--trials", type=int, default=10_000)
    parser.add_argument("--seconds", type=float, default=10.0, help="for each kind of question")
    parser.add_argument("--outcomes", type=int, default=3000)
    parser.add_argument("--readers", type=int, default=8)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    db, studies = arguments.db, arguments.studies
    facts, smallest = prepare(db, studies, arguments.trials)
    print(", ".join(f"{name} {value:,.0f}" for name, value in facts.items()))
    found: dict[str, Any] = {}
    good = True
    if "reads" in arguments.parts:
        found["reads"] = measure_reads(db, questions(studies, smallest), arguments.seconds)
        slowest = max(r["p99_ms"] for name, r in found["reads"].items() if name in NAMED)
        good &= slowest <= BEST_LIMIT and found["reads"]["pareto"]["p99_ms"] <= PARETO_LIMIT
    if "writes" in arguments.parts:
        found["writes"] = measure_writes(db, arguments.outcomes)
        good &= found["writes"]["one transaction each"]["per_second"] >= WRITE_LIMIT
    if "together" in arguments.parts:
        found["together"] = measure_together(
            db, studies, smallest, arguments.readers, arguments.seconds
        )
        good &= not found["together"]["errors"]
    forget_written(db)
    print(
        f"\nlimits: best {BEST_LIMIT:.0f} ms, pareto {PARETO_LIMIT:.0f} ms at the 99th percentile, "
        f"{WRITE_LIMIT:.0f} outcomes a second, no error: {'met' if good else 'NOT MET'}"
    )
    if arguments.out:
        from sparsearch.workers.trials.provenance import environment

        settings = vars(arguments) | {"db": without_password(db), "out": None}
        document = {"settings": settings, "database": facts, **found, "load": os.getloadavg()}
        document["environment"] = asdict(environment())
        arguments.out.write_text(json.dumps(document, indent=1))
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
