"""Keys of rankings: which trials may share one."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from sparsearch.config.study import StudyConfig
from sparsearch.results.records import Trial
from sparsearch.search.strategies.base import Strategy
from sparsearch.search.strategies.registry import find_strategy
from sparsearch.spaces.budget import Budget, resolve_all
from sparsearch.spaces.calibration.calibrate import Aligning, aligning_at
from sparsearch.workers.trials.session import Session

__all__ = [
    "aligning_of",
    "budgets_of",
    "ranking_key",
    "shared_ranking",
]


def aligning_of(session: Session) -> Aligning:
    """What the kinds of a study's space learn from data."""
    return aligning_at(session.space.kinds.values(), session.space.positions)


def budgets_of(session: Session) -> tuple[Budget, ...]:
    """A study's budgets, resolved against its backbone."""
    return resolve_all(session.config.budgets, session.space.backbone_params)


def shared_ranking(
    config: StudyConfig, budgets: Sequence[Budget], trial: Trial
) -> tuple[object, ...] | None:
    """Equal for the trials of a study that are cut from one ranking; None for one that needs none."""
    strategy = find_strategy(trial.strategy)
    if not strategy.ranks or trial.budget is None:
        return None
    config = config.with_settings(trial.settings)
    aims = strategy.aims(config.search, budgets, trial.budget)
    return trial.strategy, json.dumps([*_searched_with(config, strategy), aims]), trial.seed


def ranking_key(session: Session, strategy: str, budget: Budget, seed: int) -> str:
    """Name of a ranking: equal for equal backbone, space, kinds' options, task, search settings, seed and aims.

    What is at its default is left out, so that a later version may add options and settings. Where FLOPs can be saved,
    the length at which they are counted is part of it; nothing else depends on it but through the rows.
    """
    config, chosen = session.config, find_strategy(strategy)
    removes = any(c.role != "attach" for c in session.space.candidates)
    content = [
        session.backbone.weight_fingerprint,
        [[c.position, c.kind, c.size, c.params] for c in session.space.candidates],
        [[name, kind.set_options] for name, kind in session.space.kinds.items()],
        session.task.fingerprint,
        *_searched_with(config, chosen),
        strategy,
        chosen.aims(config.search, budgets_of(session), budget),
        seed,
        *([{"max_length": session.task.max_length}] if removes else []),
    ]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _searched_with(config: StudyConfig, strategy: Strategy) -> list[dict[str, Any]]:
    """The settings that make a ranking; those at their defaults are left out, so that new ones change no key."""
    rates = {"lr", "kind_lr", "precision", "dropout", "head_first", "start_rows", "start_steps"}
    if config.train.steps_before_cut:
        rates |= {"backbone"}
    rates |= strategy.train_settings
    return [
        config.search.model_dump(mode="json", exclude={"transfer_from"}, exclude_defaults=True),
        config.train.model_dump(mode="json", include=rates, exclude_defaults=True),
    ]
