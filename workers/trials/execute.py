"""One trial: rank (or reuse a ranking), cut at the budget, attach, train, measure once on test."""

from __future__ import annotations

import copy
import functools
import math
import time
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

from transformers import PreTrainedModel

from sparsearch.config.registry import LIMITS, STRATEGIES, TRANSFER
from sparsearch.errors import (
    Cancelled,
    InfeasibleError,
    SparsearchError,
    StoreError,
)
from sparsearch.results.records import SPARSITY, FinishedState, Measurement, Outcome, Trial
from sparsearch.search.phases import phase, timed
from sparsearch.search.strategies.base import RankingContext
from sparsearch.search.strategies.registry import find_strategy, rank
from sparsearch.search.training.device import is_out_of_memory, peak_bytes, reset_peak
from sparsearch.search.training.evaluate import evaluate
from sparsearch.search.training.seeds import derive
from sparsearch.search.training.train import Observer, TrainResult, silent
from sparsearch.spaces.attachment.attach import detach
from sparsearch.spaces.attachment.weights_file import pack_weights
from sparsearch.spaces.backbone.flops import dense_flops_per_token
from sparsearch.spaces.backbone.parameters import head_parameters
from sparsearch.spaces.budget import Budget
from sparsearch.spaces.candidate import BYTES_PER_PARAM
from sparsearch.spaces.compaction.sparsity import count_zeros
from sparsearch.spaces.costs import linear_weights, narrowed_positions
from sparsearch.spaces.ranking import Ranking
from sparsearch.spaces.structure import Provenance, Structure, make_structure
from sparsearch.workers.trials.fit import Fitting
from sparsearch.workers.trials.modes import mode_of
from sparsearch.workers.trials.provenance import environment
from sparsearch.workers.trials.ranking_key import aligning_of, budgets_of, ranking_key
from sparsearch.workers.trials.session import Session

__all__ = [
    "FindRanking",
    "KeepRanking",
    "NO_RANKINGS",
    "Rankings",
    "execute",
    "rank_on",
]

FindRanking = Callable[[str], Ranking | None]
"""Looks a stored ranking up by its key."""


KeepRanking = Callable[[str, Ranking], None]
"""Told of a ranking as soon as it is made, and of its key."""


_MOST_STORED = 10**9
"""Bytes of weights; no row of SQLite or PostgreSQL holds more."""


def _none(key: str) -> Ranking | None:
    """No ranking is stored."""
    return None


def _forget(key: str, ranking: Ranking) -> None:
    """The outcome brings the ranking too."""


class Rankings(NamedTuple):
    """Where a trial's ranking may come from, and where a new one goes.

    Attributes:
        find: Looks one up; None for none.
        keep: Told of a new one as soon as it is made.
    """

    find: FindRanking = _none
    keep: KeepRanking = _forget


NO_RANKINGS = Rankings()
"""None is stored, none is kept beside the outcome."""


def execute(
    session: Session,
    trial: Trial,
    rankings: Rankings = NO_RANKINGS,
    observe: Observer = silent,
) -> Outcome:
    """Run a trial to an outcome. Whatever goes wrong in it is an outcome too, not the end of a study.

    Args:
        session: Backbone, space and task; as it was when this returns.
        trial: What to run.
        rankings: Where a ranking may be reused from, and where a new one goes.
        observe: Told of every step.
    """
    started = time.monotonic()
    reset_peak(session.device)
    history: list[float] = []

    def watch(phase: str, done: int, total: int, score: float | None = None) -> None:
        if phase == "train" and score is not None and math.isfinite(score):
            history.append(score)
        observe(phase, done, total, score)

    seconds: dict[str, float] = {}
    try:
        session = session.with_settings(trial.settings)
        with timed() as seconds:
            outcome = _run(session, trial, rankings, watch)
    except StoreError:
        raise  # the study's, not the trial's: a lease was lost or the database failed
    except Cancelled as error:
        outcome = Outcome("cancelled", str(error))
    except InfeasibleError as error:
        outcome = Outcome(
            "infeasible",
            str(error),
            trainable_params=error.least_params,
            inference_flops_ratio=error.least_flops,
        )
    except SparsearchError as error:
        outcome = Outcome("failed", str(error))
    except Exception as error:  # noqa: BLE001 - any failure of one trial is that trial's outcome
        state: FinishedState = "oom" if is_out_of_memory(error) else "failed"
        session.prefix.clear()  # room for another try
        outcome = Outcome(state, f"{type(error).__name__}: {str(error)[:2000]}")
    finally:
        detach(session.model)
    return replace(
        outcome,
        history=tuple(history),
        seconds=time.monotonic() - started,
        peak_bytes=peak_bytes(session.device),
        environment=replace(environment(), phases=seconds),
        backbone=session.backbone,
    )


def _run(session: Session, trial: Trial, rankings: Rankings, observe: Observer) -> Outcome:
    fitting = Fitting(
        session.model, session.task, session.config.train, session.starts, trial.seed, trial.number,
        observe, session.prefix,
    )  # fmt: skip
    if STRATEGIES.family(trial.strategy) == "reference":
        return _run_reference(session, trial, fitting)
    fitting.check_steps()
    structure, ranking = _choose(session, trial, rankings, observe)
    mode = mode_of(session.config.train)
    assert trial.budget is not None, "only references have no budget"
    mode.check_limits(structure, session.space.positions, trial.budget)
    fitted = fitting.fit(structure, aligning_of(session))
    tokens = session.task.max_length
    dense = dense_flops_per_token(session.space.positions, tokens)
    weights: bytes | None = pack_weights(fitted.model, session.task.classes, whole=mode.whole)
    message = ""
    if weights is not None and len(weights) > _MOST_STORED:
        message = (
            f"{len(weights) / 1e9:.1f} GB of weights were not stored, a database takes 1 GB; "
            f"train the structure anew: sparsearch train {structure.hash[:12]} STUDY.yaml"
        )
        weights = None
    return Outcome(
        "ok",
        message,
        measurements=_measure(session, fitted.model, fitted.result)
        + _sparsity(session, structure, fitted.model)
        + _limited(trial, structure, tokens),
        structure=structure,
        trainable_params=fitted.trainable_params,
        stored_bytes=fitted.stored_bytes,
        head_params=_head_params(fitted.model),
        inference_flops_ratio=(dense + structure.inference_flops(tokens)) / dense,
        weights=weights,
        ranking=ranking,
    )


def _run_reference(session: Session, trial: Trial, fitting: Fitting) -> Outcome:
    """The head alone, or everything (on a copy: it changes the backbone)."""
    fitting.start_head()
    full = find_strategy(trial.strategy).whole_model
    model = copy.deepcopy(session.model) if full else session.model
    before = {name: p.requires_grad for name, p in model.named_parameters()}
    head = {name for name, _ in head_parameters(model)}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(full or name in head)
    try:
        whole = full or mode_of(session.config.train).trains_all
        measurements = _measure(session, model, fitting.train(model, whole=whole, taken=0))
    finally:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(before[name])
    trained = session.backbone.params if full else 0
    return Outcome(
        "ok",
        measurements=measurements,
        trainable_params=trained,
        stored_bytes=BYTES_PER_PARAM * trained,
        head_params=_head_params(model),
    )


def _choose(
    session: Session, trial: Trial, rankings: Rankings, observe: Observer
) -> tuple[Structure, tuple[str, Ranking] | None]:
    """The structure of a budgeted strategy, and the ranking that it was selected by."""
    budget = trial.budget
    assert budget is not None, "only references have no budget"
    strategy = find_strategy(trial.strategy)
    ranking: tuple[str, Ranking] | None = None
    if trial.strategy == TRANSFER:
        ranking = _transferred(session, rankings.find)
    elif strategy.ranks:
        key = ranking_key(session, trial.strategy, budget, trial.seed)
        made = rankings.find(key)
        if made is None:
            with phase("ranking"):
                made = rank_on(session, trial.strategy, budget, trial.seed, observe)
        rankings.keep(key, made)
        ranking = (key, made)
    space, chosen = strategy.select(
        session.space,
        ranking and ranking[1],
        budget,
        session.config.search,
        session.task.max_length,
    )
    provenance = Provenance(
        session.config.name,
        trial.number,
        trial.strategy,
        trial.seed,
        environment().versions["sparsearch"],
    )
    return make_structure(space, chosen, session.backbone, session.task.type, provenance), ranking


def _transferred(session: Session, find_ranking: FindRanking) -> tuple[str, Ranking]:
    """The ranking that the trial names."""
    key = session.config.search.transfer_from
    ranking = find_ranking(key) if key is not None else None
    if key is None or ranking is None:
        raise SparsearchError(f"the database has no ranking {key!r} to transfer")
    return key, ranking


def rank_on(
    session: Session, strategy: str, budget: Budget, seed: int, observe: Observer = silent
) -> Ranking:
    """Make a strategy's ranking on a session."""
    aims = find_strategy(strategy).aims(session.config.search, budgets_of(session), budget)
    derived = derive(seed, strategy, aims, "ranking")
    config, space = session.config, session.space
    start = functools.partial(session.starts.get, seed, aligning_of(session), observe, late=True)
    context = RankingContext(
        session.model, space, session.task, config.search, config.train, budgets_of(session), start
    )
    return replace(
        rank(strategy, context, budget, derived, observe),
        seed=seed,
        backbone=session.backbone.weight_fingerprint,
        space=space.fingerprint,
        task=config.task.title,
    )


def _measure(
    session: Session, model: PreTrainedModel, result: TrainResult
) -> tuple[Measurement, ...]:
    """Validation as kept by training; test is touched here, once."""
    test = evaluate(model, session.task, session.task.test, session.config.train.precision)
    metric = session.config.task.score_name
    return (
        Measurement(metric, "validation", result.score),
        Measurement(metric, "test", test),
    )


def _sparsity(
    session: Session, structure: Structure, model: PreTrainedModel
) -> tuple[Measurement, ...]:
    """What is zero or gone, counted after training, where a structure takes anything away."""
    if not any(c.role != "attach" for c in structure.candidates):
        return ()
    zeros, _ = count_zeros(model)
    positions = session.space.positions
    dense, left = (
        linear_weights(positions),
        linear_weights(narrowed_positions(positions, structure.candidates)),
    )
    return (Measurement(SPARSITY, "test", (zeros + dense - left) / dense),)


def _limited(trial: Trial, structure: Structure, tokens: int) -> tuple[Measurement, ...]:
    """What a structure has of each limit of its budget that no column holds."""
    limits = [LIMITS.load(name)() for name, _ in trial.budget.limits] if trial.budget else []
    return tuple(
        Measurement(n.name, "test", sum(n.cost(c, tokens) for c in structure.candidates))
        for n in limits
        if not n.column
    )


def _head_params(model: PreTrainedModel) -> int:
    return sum(p.numel() for _, p in head_parameters(model))
