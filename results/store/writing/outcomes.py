"""Outcomes: what is stored when a trial ends, inside one transaction."""

from __future__ import annotations

import math
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, bindparam, insert, update

from sparsearch.results.records import SPARSITY, Measurement, Outcome
from sparsearch.results.store import pareto_front as front
from sparsearch.results.store.tables import Base
from sparsearch.results.store.writing import attempts
from sparsearch.results.store.writing.lease import Claim
from sparsearch.results.store.writing.studies import insert_once, unfinished_trial
from sparsearch.spaces.ranking import Ranking

if TYPE_CHECKING:
    from sparsearch.spaces.structure import Structure

__all__ = ["add_ranking", "finish"]

# Statements on tables, built once, cost half of those on mapped classes.
_TABLES = Base.metadata.tables
_FINISH = update(_TABLES["trials"]).where(_TABLES["trials"].c.id == bindparam("trial"))
_KNOW_BACKBONE = update(_TABLES["studies"]).where(_TABLES["studies"].c.id == bindparam("study"))
_MEASURE = insert(_TABLES["measurements"])
_KEEP_WEIGHTS = insert(_TABLES["weights"])
_PLACE = insert(_TABLES["placements"])


def finish(connection: Connection, claim: Claim, number: int, outcome: Outcome) -> None:
    """Store an outcome with all that belongs to it.

    Raises:
        StoreError: If the trial is finished already.
        LeaseError: If another driver took the study over.
    """
    trial = unfinished_trial(connection, claim, number)
    values = _finished(outcome, trial.metric)
    # What a trial refers to comes before it.
    if outcome.structure is not None:
        _insert_structure(connection, outcome.structure)
    backbone = outcome.backbone or (outcome.structure and outcome.structure.backbone)
    if backbone and not trial.backbone:
        known = {"backbone": backbone.weight_fingerprint, "backbone_id": backbone.as_dict()}
        connection.execute(_KNOW_BACKBONE, known | {"study": trial.study_id})
    if outcome.ranking is not None:
        add_ranking(connection, *outcome.ranking)
    point = front.Point(
        trial.study_id,
        number,
        values["score"],
        outcome.trainable_params,
        outcome.stored_bytes,
        outcome.inference_flops_ratio,
        values["weight_sparsity"],
    )
    values["on_front"] = values["recommendable"] and front.enter(connection, point)
    connection.execute(_FINISH, values | {"trial": trial.id})
    attempts.end(connection, trial.id, outcome.state, values["message"])
    if outcome.measurements:
        measured = [_measurement(trial.id, m) for m in outcome.measurements]
        connection.execute(_MEASURE, measured)
    if outcome.weights is not None:
        connection.execute(_KEEP_WEIGHTS, {"trial_id": trial.id, "data": outcome.weights})


def _finished(outcome: Outcome, metric: str) -> dict[str, Any]:
    """The columns of a trial that its outcome fills."""
    scores = {m.split: m.value for m in outcome.measurements if m.metric == metric}
    zeros = (m.value for m in outcome.measurements if m.metric == SPARSITY)
    score, structure = _finite(scores.get("validation")), outcome.structure
    return {
        "state": outcome.state,
        "feasible": outcome.state == "ok",
        "recommendable": outcome.state == "ok" and structure is not None and score is not None,
        "message": _storable(outcome.message),
        "score": score,
        "history": [_finite(score) for score in outcome.history] or None,
        "test_score": _finite(scores.get("test")),
        "structure_hash": structure.hash if structure is not None else None,
        "offered": structure.provenance.offered if structure is not None else None,
        "ranking_key": outcome.ranking[0] if outcome.ranking is not None else None,
        "trainable_params": outcome.trainable_params,
        "stored_bytes": outcome.stored_bytes if outcome.state == "ok" else None,
        "head_params": outcome.head_params,
        "inference_flops_ratio": outcome.inference_flops_ratio,
        "weight_sparsity": next(zeros, 0.0),
        "seconds": outcome.seconds,
        "peak_bytes": outcome.peak_bytes,
        "finished_at": datetime.now(UTC),
        "environment": vars(outcome.environment) if outcome.environment is not None else None,
    }


def _storable(text: str) -> str:
    """Without what no UTF-8 (lone surrogates) and no text in PostgreSQL (NUL) can hold."""
    return text.encode("utf-8", "replace").decode().replace("\0", "?")


def _finite(value: float | None) -> float | None:
    """A correlation of constants is NaN, which SQLite cannot hold and PostgreSQL sorts on top."""
    return value if value is not None and math.isfinite(value) else None


def _measurement(trial_id: int, m: Measurement) -> dict[str, Any]:
    return {
        "trial_id": trial_id,
        "metric": m.metric,
        "split": m.split,
        "value": _finite(m.value),
    }


def _insert_structure(connection: Connection, structure: Structure) -> None:
    row = {
        "hash": structure.hash,
        "document": structure.to_json(indent=None),
        "trainable_params": structure.trainable_params,
    }
    if insert_once(connection, "structures", row) and structure.candidates:
        placements = [
            {
                "structure_hash": structure.hash,
                "position": c.position,
                "kind": c.kind,
                "size": c.size,
                "params": c.params,
            }
            for c in structure.candidates
        ]
        connection.execute(_PLACE, placements)


def add_ranking(connection: Connection, key: str, ranking: Ranking) -> None:
    """Keep a ranking; the first under a key stays."""
    row = {
        "key": key,
        "strategy": ranking.strategy,
        "seed": ranking.seed,
        "steps": ranking.steps,
        "seconds": ranking.seconds,
        "scores": list(ranking.scores),
        "backbone": ranking.backbone,
        "space": ranking.space,
        "task": ranking.task,
        "trace": None if ranking.trace is None else asdict(ranking.trace),
        "created_at": datetime.now(UTC),
    }
    insert_once(connection, "rankings", row)
