"""The service under readers: how fast pages are there, and what they cost a study on the same two cores.

A study of MiniLM runs several times, in turn without readers and with 200 clients that each ask for a page every five
seconds, 50 of them with an open stream of events. Readers, server and study share the machine.

    python benchmarks/service/readers.py --db store.db --out readers.json     # a database as store.py fills it
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
import psutil
import yaml
from sqlalchemy import create_engine

from sparsearch.results.records import Outcome, StudySpec, Trial
from sparsearch.results.store.connection.urls import parse_url
from sparsearch.results.store.store import Store
from sparsearch.spaces.budget import Budget
from sparsearch.testing.store_conformance import sample_outcome
from sparsearch.workers.trials.provenance import environment

ROOT = Path(__file__).resolve().parents[2]
LARGE, BUDGETS, STRATEGIES = "large", 20, ("s3pet", "random", "probe", "lora-qv", "lnfit")
STUDY = "read"
WARM_SECONDS = 10.0
"""In which a server reads its youngest studies, so that whoever asks first need not wait."""


def fill_large(url: str, trials: int) -> None:
    """A study of so many finished trials: 20 budgets, five strategies, many seeds."""
    draw, pairs = random.Random(0), []
    each = trials // BUDGETS
    for number in range(trials):
        place, repeat = divmod(number, each)
        most = 100 * (place + 1)
        budget = Budget(max_trainable_params=most, text=f"{most / 10_000:.2f}%")
        strategy, seed = STRATEGIES[repeat % len(STRATEGIES)], repeat // len(STRATEGIES)
        score = 0.7 + 0.2 * draw.random()
        outcome = replace(sample_outcome(score, most - repeat % 50), history=(0.4, 0.6, score))
        pairs.append((Trial(number, strategy, budget, seed), outcome))
    store_all(url, pairs)


def store_all(url: str, pairs: Sequence[tuple[Trial, Outcome]]) -> None:
    """Store finished trials as a driver would; all but the last, which ``finish_last`` adds."""
    config = json.dumps({"search": {"strategy": "s3pet"}})
    with Store.open(url, create=True) as store:
        spec = StudySpec(
            LARGE, config, "minilm", "trec", "accuracy", 22_713_216, tuple(t for t, _ in pairs)
        )
        store.begin_study(spec)
        store.acquire(LARGE)
        for trial, outcome in pairs[:-1]:
            store.start(LARGE, trial.number)
            store.finish(LARGE, trial.number, outcome)
        store.release(LARGE)


def finish_last(url: str, number: int) -> None:
    """One trial more is finished."""
    with Store.open(url, create=True) as store:
        store.acquire(LARGE)
        store.start(LARGE, number)
        store.finish(LARGE, number, sample_outcome(0.8, 90))
        store.release(LARGE)


class Server:
    """``sparsearch serve`` in a process of its own."""

    def __init__(self, db: str, folder: Path) -> None:
        command = "import sys; from sparsearch.cli.main import main; main()"
        options = ("--launches", str(folder / "launches"), "--root", str(ROOT / "examples"))
        self.process = subprocess.Popen(
            [sys.executable, "-c", command, "serve", "--db", db, "--port", "0", *options],
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stderr is not None
        self.url = self.process.stderr.readline().split()[2].rstrip("/,")
        self.port = int(self.url.rsplit(":", 1)[1])

    def cpu(self) -> float:
        """Seconds of processor time so far."""
        times = psutil.Process(self.process.pid).cpu_times()
        return float(times.user + times.system)

    def stop(self) -> None:
        """End it."""
        self.process.terminate()
        self.process.wait(30)


async def ask(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, path: str
) -> tuple[float, int, int]:
    """One request on an open connection: milliseconds, bytes, status."""
    began = time.perf_counter()
    writer.write(
        f"GET {path} HTTP/1.1\r\nHost: localhost\r\nAccept: text/html\r\nAccept-Encoding: gzip\r\n\r\n".encode()
    )
    head = await reader.readuntil(b"\r\n\r\n")
    fields = dict(
        line.split(": ", 1) for line in head.decode().lower().split("\r\n")[1:] if ": " in line
    )
    length = int(fields.get("content-length", 0))
    await reader.readexactly(length)
    return 1000 * (time.perf_counter() - began), length, int(head.split()[1])


class Readers:
    """Clients that ask for pages, and streams that stay open.

    Args:
        port: Of the server.
        clients: How many.
        streams: Of them, how many watch the study.
        pause: Mean seconds between two questions of a client.
    """

    def __init__(self, port: int, clients: int, streams: int, pause: float) -> None:
        self.port, self.clients, self.streams, self.pause = port, clients, streams, pause
        self.times: dict[str, list[float]] = {}
        self.statuses: dict[int, int] = {}
        self.lines = self.broken = 0
        self.paths = [
            "/", f"/studies/{STUDY}", f"/studies/{STUDY}/trials", f"/studies/{STUDY}/figures/scores",
            f"/studies/{LARGE}", f"/studies/{LARGE}/trials?after=5000", "/api/v1/studies?limit=20",
            f"/api/v1/studies/{STUDY}", "/api/v1/best?study=large&limit=max_trainable_params=900",
        ]  # fmt: skip

    async def client(self, number: int) -> None:
        """Ask, wait, ask."""
        draw = random.Random(number)
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            while True:
                await asyncio.sleep(2 * self.pause * draw.random())
                path = draw.choice(self.paths)
                try:
                    took, _, status = await ask(reader, writer, path)
                except (asyncio.IncompleteReadError, ConnectionError):  # it was idle for too long
                    reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
                    took, _, status = await ask(reader, writer, path)
                self.times.setdefault(path, []).append(took)
                self.statuses[status] = self.statuses.get(status, 0) + 1
        finally:
            writer.close()

    async def stream(self) -> None:
        """Read events as long as there are any."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            path = f"/api/v1/launches/{STUDY}/events"
            writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            while line := await reader.readline():
                self.lines += line.startswith(b"data:")
            self.broken += 1
        finally:
            writer.close()

    async def read(self, until: Path) -> None:
        """Read until a launch has ended."""
        tasks = [asyncio.create_task(self.client(n)) for n in range(self.clients)]
        tasks += [asyncio.create_task(self.stream()) for _ in range(self.streams)]
        while not (until / "end.json").exists():
            await asyncio.sleep(0.5)
            for task in tasks[: self.clients]:
                if task.done():
                    task.result()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def study(name: str, threads: int | None) -> dict[str, Any]:
    """Uniform and random structures of MiniLM on the demo's data, one epoch each: nothing but training."""
    content: dict[str, Any] = yaml.safe_load((ROOT / "examples/demo.yaml").read_text())
    content |= {"name": name, "baselines": ["random", "lora-qv"], "seeds": [0, 1]}
    content |= {"space": {"kinds": {"lora": {"max_rank": 2}, "bitfit": {}}}, "budgets": ["0.1%"]}
    content |= {"search": {"strategy": "random"}, "train": {"epochs": 1, "batch_size": 32}}
    content |= {"workers": {"threads": threads}}
    return content


def run_study(
    server: Server, folder: Path, readers: Readers | None, threads: int | None
) -> dict[str, Any]:
    """Launch the study anew, on so many threads; seconds of its trials, and what the readers saw."""
    with httpx2.Client(base_url=f"{server.url}/api/v1", timeout=120, trust_env=False) as client:
        cpu, mine, began = server.cpu(), time.process_time(), time.perf_counter()
        launched = client.post("/launches", json=study(STUDY, threads))
        launched.raise_for_status()
        (launch,) = (
            p.parent for p in (folder / "launches").glob("*/request.json")
            if json.loads(p.read_text())["name"] == STUDY
        )  # fmt: skip
        asyncio.run((readers or Readers(server.port, 0, 0, 1.0)).read(launch))
        wall = time.perf_counter() - began
        trials = client.get(f"/studies/{STUDY}/trials").json()["items"]
        found = {
            "trial_seconds": [t["seconds"] for t in trials],
            "wall_seconds": wall,
            "server_cpu_share": (server.cpu() - cpu) / wall,
            "readers_cpu_share": (time.process_time() - mine) / wall,
        }
        client.delete(f"/studies/{STUDY}", params={"confirm": STUDY}).raise_for_status()
    return found


def pages(db: str, folder: Path, trials: int) -> dict[str, Any]:
    """A page of the large study from a server that has just started, again, and after one trial more."""
    path = f"/studies/{LARGE}"

    async def times() -> tuple[float, int, int]:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        try:
            await ask(reader, writer, "/api/v1/health")
            return await ask(reader, writer, path)
        finally:
            writer.close()

    server = Server(db, folder)
    time.sleep(WARM_SECONDS)
    try:
        first, again = asyncio.run(times()), asyncio.run(times())
        time.sleep(11)
        finish_last(db, trials - 1)
        after = asyncio.run(times())
        path = f"/studies/{LARGE}/trials/{trials - 1}/section"
        section = asyncio.run(times())
    finally:
        server.stop()
    return {
        "first_ms": first[0], "again_ms": again[0], "after_a_trial_ms": after[0],
        "page_bytes": first[1], "update_bytes": section[1],
    }  # fmt: skip


def p95(values: Sequence[float]) -> float:
    """The 95th percentile."""
    return statistics.quantiles(values, n=20)[-1]


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--db", default="", help="SQLite file; a new one if not given")
    parser.add_argument("--trials", type=int, default=10_000, help="of the large study")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--streams", type=int, default=50)
    parser.add_argument("--pause", type=float, default=5.0, help="seconds between two questions")
    parser.add_argument("--threads", type=int, help="of the study; if not given, all cores")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        db = f"sqlite:///{options.db or folder / 'readers.db'}"
        with Store.open(db, create=True) as store:
            if any(s.name == LARGE for s in store.studies()):
                store.delete_study(LARGE)
        fill_large(db, options.trials)
        found: dict[str, Any] = {"settings": vars(options) | {"out": str(options.out)}}
        with create_engine(parse_url(db)).connect() as connection:
            count = connection.exec_driver_sql("SELECT count(*) FROM structures").scalar()
        found["structures"] = count
        found["large_study"] = pages(db, folder, options.trials)
        print(found["large_study"], file=sys.stderr)
        server, rounds = Server(db, folder), []
        times: dict[str, list[float]] = {}
        statuses: dict[int, int] = {}
        try:
            run_study(server, folder, None, options.threads)  # files and code come into memory
            for _ in range(options.rounds):
                alone = run_study(server, folder, None, options.threads)
                readers = Readers(server.port, options.clients, options.streams, options.pause)
                beside = run_study(server, folder, readers, options.threads)
                for path, values in readers.times.items():
                    times.setdefault(path, []).extend(values)
                for status, number in readers.statuses.items():
                    statuses[status] = statuses.get(status, 0) + number
                beside |= {"events": readers.lines, "broken_streams": readers.broken}
                rounds.append({"alone": alone, "beside": beside})
                ratio = sum(beside["trial_seconds"]) / sum(alone["trial_seconds"])
                print(f"with readers {ratio:.3f} of the time without", file=sys.stderr)
        finally:
            server.stop()
    everything = [took for values in times.values() for took in values]
    ratios = [sum(r["beside"]["trial_seconds"]) / sum(r["alone"]["trial_seconds"]) for r in rounds]
    found |= {
        "rounds": rounds,
        "ratios": ratios,
        "median_ratio": statistics.median(ratios),
        "requests": len(everything),
        "statuses": statuses,
        "p95_ms": p95(everything),
        "p95_ms_by_path": {path: p95(values) for path, values in times.items()},
        "environment": vars(environment()),
    }
    if options.out:
        options.out.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps({k: found[k] for k in ("large_study", "ratios", "requests", "p95_ms")}))


if __name__ == "__main__":
    main()
