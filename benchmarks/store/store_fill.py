"""Structures and trials for ``store.py``: random ones, and a database full of them."""

from __future__ import annotations

import random
import sys
import time
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import MetaData, create_engine, insert

from sparsearch.results.records import Environment, Measurement, Outcome
from sparsearch.results.store import migrations
from sparsearch.results.store.connection.urls import parse_url
from sparsearch.results.store.store import Store
from sparsearch.spaces.backbone.identity import BackboneId
from sparsearch.spaces.candidate import Candidate
from sparsearch.spaces.kinds import make_kind
from sparsearch.spaces.structure import Provenance, Structure

__all__ = ["MODELS", "TASKS", "fill", "group", "random_outcome", "study_name"]

MODELS = {
    "minilm": 22_713_216,
    "distilbert": 66_362_880,
    "bert-base": 109_482_240,
    "roberta-large": 355_359_744,
}
TASKS = ("trec", "sst2", "rte", "mnli", "stsb")

_PLACES = [f"layers.{layer}.attn.{part}" for layer in range(12) for part in "qkvo"]
_PLACEMENTS, _WIDTH = 10, 384
_KINDS = (make_kind("lora", {}),)
_ENVIRONMENT = Environment("0" * 40, {"torch": "2.13.0", "transformers": "5.23.0"}, "cpu")


def study_name(number: int) -> str:
    """The study of that number."""
    return f"study-{number}"


def group(number: int) -> tuple[str, str]:
    """Model and task of the study of that number."""
    return list(MODELS)[number % len(MODELS)], TASKS[number // len(MODELS) % len(TASKS)]


def random_outcome(draw: random.Random, study: int, weights: int = 0) -> Outcome:
    """A success with a structure that no other study has: the larger and slower the better, with noise."""
    model, _ = group(study)
    most = draw.choice((1, 2, 4, 8, 16, 32, 64))
    chosen = []
    for place in sorted(draw.sample(range(len(_PLACES)), _PLACEMENTS)):
        size = draw.randint(1, most)
        flops = 4 * _WIDTH * size
        chosen.append(Candidate(_PLACES[place], "lora", size, 2 * _WIDTH * size, flops, 0))
    backbone = BackboneId(model, None, "bert", "c" * 64, f"{study:064}", MODELS[model])
    structure = Structure(backbone, "classification", tuple(chosen), _KINDS, Provenance("s", 0))
    params, ratio = structure.trainable_params, draw.choice((1.0, draw.uniform(0.5, 1.0)))
    score = 0.5 + 0.4 * ratio * params / (params + 50_000) + draw.gauss(0, 0.02)
    return Outcome(
        "ok",
        measurements=(
            Measurement("accuracy", "validation", score),
            Measurement("accuracy", "test", score + draw.gauss(0, 0.01)),
        ),
        structure=structure,
        trainable_params=params,
        stored_bytes=structure.stored_bytes,
        head_params=2310,
        inference_flops_ratio=ratio,
        weights=draw.randbytes(weights) if weights else None,
        seconds=60.0,
        peak_bytes=2**30,
        environment=_ENVIRONMENT,
    )


def fill(url: str, studies: int, trials: int) -> dict[str, float]:
    """Bulk inserts into the tables of the first revision, then the migration; seconds of both.

    Weights are left out: they would be most of the file, and nothing that is measured reads them.
    """
    engine = create_engine(parse_url(url))
    started = time.perf_counter()
    with engine.begin() as connection:
        migrations.upgrade(connection, "0001")
        tables = MetaData()
        tables.reflect(connection)
    for number in range(studies):
        rows = _study_rows(number, trials)
        with engine.begin() as connection:
            for table, values in rows.items():
                connection.execute(insert(tables.tables[table]), values)
        print(f"\rfilled {number + 1} of {studies} studies", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    engine.dispose()
    filled = time.perf_counter()
    Store.open(url, create=True).close()
    return {"fill_seconds": filled - started, "migrate_seconds": time.perf_counter() - filled}


def _study_rows(number: int, trials: int) -> dict[str, list[dict[str, Any]]]:
    """Rows of every table for one study. Ids are those that the database gives, one after another."""
    model, task = group(number)
    draw, now = random.Random(number), datetime.now(UTC)
    shared = {"model": model, "task": task, "backbone_params": MODELS[model]}
    study = {"name": study_name(number), "config": "{}", "metric": "accuracy", "created_at": now}
    rows: dict[str, list[dict[str, Any]]] = {"studies": [study | shared]}
    found: dict[str, tuple[Structure, Outcome]] = {}
    while len(found) < trials:
        outcome = random_outcome(draw, number)
        assert outcome.structure is not None, "every outcome has one"
        found[outcome.structure.hash] = outcome.structure, outcome
    for name in ("structures", "placements", "trials", "measurements"):
        rows[name] = []
    for trial, (key, (structure, outcome)) in enumerate(found.items()):
        params = outcome.trainable_params
        validation, test = outcome.measurements
        rows["structures"].append(
            {"hash": key, "document": structure.to_json(None), "trainable_params": params}
        )
        rows["placements"] += [
            {"structure_hash": key, "position": c.position, "kind": c.kind, "size": c.size}
            | {"params": c.params}
            for c in structure.candidates
        ]
        rows["trials"].append(
            shared
            | {"study_id": number + 1, "number": trial, "strategy": "s3pet", "seed": trial}
            | {"budget": {"max_trainable_params": params}, "state": "ok", "attempts": 1}
            | {"feasible": True, "recommendable": True, "message": "", "structure_hash": key}
            | {"score": validation.value, "test_score": test.value, "trainable_params": params}
            | {"head_params": outcome.head_params, "seconds": outcome.seconds}
            | {"inference_flops_ratio": outcome.inference_flops_ratio, "finished_at": now}
            | {"peak_bytes": outcome.peak_bytes, "environment": asdict(_ENVIRONMENT)}
        )
        rows["measurements"] += [
            {"trial_id": number * trials + trial + 1, **asdict(m)} for m in outcome.measurements
        ]
    for name, key in (("structures", "hash"), ("placements", "structure_hash")):
        rows[name].sort(key=lambda row: row[key])  # neighbours in the index go in together
    return rows
