"""One trial: rank (or reuse a ranking), cut at the budget, attach, train, measure once on test."""

from __future__ import annotations

import copy
import functools
import hashlib
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import safetensors.torch
from transformers import PreTrainedModel

from sparsearch.config import StudyConfig
from sparsearch.errors import (
    Cancelled,
    InfeasibleError,
    SparsearchError,
    StoreError,
)
from sparsearch.results.values import SPARSITY, FinishedState, Measurement, Outcome, Trial
from sparsearch.search.cut import cut
from sparsearch.search.device import is_out_of_memory, peak_bytes, reset_peak
from sparsearch.search.evaluate import evaluate
from sparsearch.search.masking import without_scores
from sparsearch.search.seeds import derive
from sparsearch.search.strategies import RANKERS, REFERENCES, TRANSFER, Problem, rank, uniform
from sparsearch.search.train import Observer, TrainResult, rates_of, silent, steps_left, train
from sparsearch.spaces.align import Aligning, aligning_at
from sparsearch.spaces.attach import detach
from sparsearch.spaces.backbone import count_params, dense_flops_per_token, head_parameters
from sparsearch.spaces.budget import Budget, resolve_all, served_limits
from sparsearch.spaces.merge import count_zeros
from sparsearch.spaces.ranking import Ranking
from sparsearch.spaces.space import Space, linear_weights, narrow
from sparsearch.spaces.structure import Provenance, Structure, make_structure
from sparsearch.spaces.weights_file import weights_of
from sparsearch.workers.environment import environment
from sparsearch.workers.workbench import Workbench, attach_anew, cut_out, start_head, start_of

__all__ = [
    "FindRanking",
    "KeepRanking",
    "execute",
    "pack_weights",
    "rank_on",
    "ranking_key",
    "shared_ranking",
]

FindRanking = Callable[[str], Ranking | None]
"""Looks a stored ranking up by its key."""

KeepRanking = Callable[[str, Ranking], None]
"""Told of a ranking as soon as it is made, and of its key."""


_MOST_STORED = 10**9
"""Bytes of weights; no row of SQLite or PostgreSQL holds more."""


def _forget(key: str, ranking: Ranking) -> None:
    """The outcome brings the ranking too."""


def execute(
    bench: Workbench,
    trial: Trial,
    find_ranking: FindRanking,
    observe: Observer = silent,
    keep_ranking: KeepRanking = _forget,
) -> Outcome:
    """Run a trial to an outcome. Whatever goes wrong in it is an outcome too, not the end of a study.

    Args:
        bench: Backbone, space and task; as it was when this returns.
        trial: What to run.
        find_ranking: Where a ranking may be reused from.
        observe: Told of every step.
        keep_ranking: Told of a new ranking.
    """
    started = time.monotonic()
    reset_peak(bench.device)
    history: list[float] = []

    def watch(phase: str, done: int, total: int, score: float | None = None) -> None:
        if phase == "train" and score is not None and math.isfinite(score):
            history.append(score)
        observe(phase, done, total, score)

    try:
        bench = bench.with_settings(trial.settings)
        outcome = _run(bench, trial, find_ranking, watch, keep_ranking)
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
        bench.prefix.clear()  # room for another try
        outcome = Outcome(state, f"{type(error).__name__}: {str(error)[:2000]}")
    finally:
        detach(bench.model)
    return replace(
        outcome,
        history=tuple(history),
        seconds=time.monotonic() - started,
        peak_bytes=peak_bytes(bench.device),
        environment=environment(),
    )


def _run(
    bench: Workbench,
    trial: Trial,
    find_ranking: FindRanking,
    observe: Observer,
    keep_ranking: KeepRanking,
) -> Outcome:
    if trial.strategy in REFERENCES:
        return _run_reference(bench, trial, observe)
    assert trial.budget is not None, "only references have no budget"
    config, model = bench.config.train, bench.model
    steps_left(bench.task, config, config.steps_taken)  # before what takes long
    structure, ranking = _choose(bench, trial, trial.budget, find_ranking, observe, keep_ranking)
    if config.backbone:
        model = cut_out(
            model, structure, bench.starts, _aligning(bench), config, trial.seed, trial.number,
            observe=observe,
        )  # fmt: skip
    else:
        attach_anew(
            model, structure, bench.starts, config, trial.seed, trial.number, observe=observe
        )
    result = _train(bench, model, trial, observe)
    tokens = bench.task.max_length
    dense = dense_flops_per_token(bench.space.positions, tokens)
    weights: bytes | None = pack_weights(model, bench.task.classes, whole=config.backbone)
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
        measurements=_measure(bench, model, result) + _sparsity(bench, structure, model),
        structure=structure,
        trainable_params=count_params(model) if config.backbone else structure.trainable_params,
        head_params=_head_params(model),
        inference_flops_ratio=1.0 + structure.inference_flops(tokens) / dense,
        weights=weights,
        ranking=ranking,
    )


def _run_reference(bench: Workbench, trial: Trial, observe: Observer) -> Outcome:
    """The head alone, or everything (on a copy: it changes the backbone)."""
    config = bench.config.train
    warm = functools.partial(start_of, bench.starts, trial.seed, (), config)
    start_head(bench.model, warm, config, trial.seed, trial.number)
    full = trial.strategy == "full"
    model = copy.deepcopy(bench.model) if full else bench.model
    before = {name: p.requires_grad for name, p in model.named_parameters()}
    head = {name for name, _ in head_parameters(model)}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(full or name in head)
    try:
        result = _train(bench, model, trial, observe)
        measurements = _measure(bench, model, result)
    finally:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(before[name])
    return Outcome(
        "ok",
        measurements=measurements,
        trainable_params=bench.backbone.params if full else 0,
        head_params=_head_params(model),
    )


def _choose(
    bench: Workbench,
    trial: Trial,
    budget: Budget,
    find_ranking: FindRanking,
    observe: Observer,
    keep_ranking: KeepRanking,
) -> tuple[Structure, tuple[str, Ranking] | None]:
    """The structure of a budgeted strategy, and the ranking it was cut from."""
    space, ranking = bench.space, None
    tokens = bench.task.max_length
    if trial.strategy == "magnitude":
        space = without_scores(space)
    if trial.strategy in (*RANKERS, TRANSFER):
        if trial.strategy == TRANSFER:
            ranking = _transferred(bench, find_ranking)
        else:
            key = ranking_key(bench, trial.strategy, budget, trial.seed)
            made = find_ranking(key)
            if made is None:
                made = rank_on(bench, trial.strategy, budget, trial.seed, observe)
            keep_ranking(key, made)
            ranking = (key, made)
        search, found = bench.config.search, ranking[1]
        rules = {"s3pet": search.cut, TRANSFER: search.cut, "probe": search.probe.cut}
        rule = rules.get(trial.strategy, "greedy")
        chosen = cut(space, found, budget, rule, tokens)
    else:
        chosen, kind = uniform(trial.strategy, space, budget, tokens)
        space = Space(
            space.candidates,
            {**space.kinds, kind.name: kind},
            space.positions,
            space.backbone_params,
        )
    provenance = Provenance(
        bench.config.name,
        trial.number,
        trial.strategy,
        trial.seed,
        environment().versions["sparsearch"],
    )
    return make_structure(space, chosen, bench.backbone, bench.task.type, provenance), ranking


def _transferred(bench: Workbench, find_ranking: FindRanking) -> tuple[str, Ranking]:
    """The ranking that the trial names."""
    key = bench.config.search.transfer_from
    ranking = find_ranking(key) if key is not None else None
    if key is None or ranking is None:
        raise SparsearchError(f"the database has no ranking {key!r} to transfer")
    return key, ranking


def rank_on(
    bench: Workbench, strategy: str, budget: Budget, seed: int, observe: Observer = silent
) -> Ranking:
    """Make a strategy's ranking on a workbench."""
    aims = _aims(bench.config, _budgets(bench), strategy, budget)
    derived = derive(seed, strategy, aims, "ranking")
    config, space = bench.config, bench.space
    start = functools.partial(
        start_of, bench.starts, seed, _aligning(bench), config.train, observe, late=True
    )
    problem = Problem(
        bench.model, space, bench.task, config.search, config.train, _budgets(bench), start
    )
    return replace(
        rank(strategy, problem, budget, derived, observe),
        seed=seed,
        backbone=bench.backbone.weight_fingerprint,
        space=space.fingerprint,
        task=config.task.title,
    )


def _aligning(bench: Workbench) -> Aligning:
    return aligning_at(bench.space.kinds.values(), bench.space.positions)


def _budgets(bench: Workbench) -> tuple[Budget, ...]:
    return resolve_all(bench.config.budgets, bench.space.backbone_params)


def shared_ranking(
    config: StudyConfig, budgets: Sequence[Budget], trial: Trial
) -> tuple[object, ...] | None:
    """Equal for the trials of a study that are cut from one ranking; None for one that needs none."""
    if trial.strategy not in RANKERS or trial.budget is None:
        return None
    config = config.with_settings(trial.settings)
    aims = _aims(config, budgets, trial.strategy, trial.budget)
    return trial.strategy, json.dumps([*_searched_with(config, trial.strategy), aims]), trial.seed


def _aims(
    config: StudyConfig, budgets: Sequence[Budget], strategy: str, budget: Budget
) -> list[dict[str, int | float]]:
    """The limits that a ranking is made for: the trial's, the ends of the study's range, both, or (a probe) none.

    A search that draws budgets sees the ends of their range alone, so that its ranking serves all between them,
    in other studies too; only one that may stop early looks at the cuts of each.
    """
    search = config.search
    if strategy in ("probe", "surgeon"):
        return []
    own = [dict(budget.limits)]
    if strategy != "s3pet" or search.budget_schedule != "sampled":
        return own
    served = served_limits(budgets, every=search.early_stop)
    judged = search.checkpoint == "hard" or search.swaps > 0  # at the trial's budget
    return served + (own if judged else [])


def ranking_key(bench: Workbench, strategy: str, budget: Budget, seed: int) -> str:
    """Name of a ranking: equal for equal backbone, space, kinds' options, task, search settings, seed and aims.

    What is at its default is left out, so that a later version may add options and settings.
    """
    config = bench.config
    content = [
        bench.backbone.weight_fingerprint,
        [[c.position, c.kind, c.size, c.params] for c in bench.space.candidates],
        [[name, kind.set_options] for name, kind in bench.space.kinds.items()],
        bench.task.fingerprint,
        *_searched_with(config, strategy),
        strategy,
        _aims(config, _budgets(bench), strategy, budget),
        seed,
    ]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _searched_with(config: StudyConfig, strategy: str) -> list[dict[str, Any]]:
    """The settings that make a ranking; those at their defaults are left out, so that new ones change no key."""
    rates = {"lr", "kind_lr", "precision", "dropout", "head_first", "start_rows", "start_steps"}
    if config.train.steps_before_cut:
        rates |= {"backbone"}
    if strategy in ("slimming", "update-magnitude"):  # train as trials do
        rates |= {"full_lr", "batch_size", "epochs", "warmup", "clip", "weight_decay"}
    return [
        config.search.model_dump(mode="json", exclude={"transfer_from"}, exclude_defaults=True),
        config.train.model_dump(mode="json", include=rates, exclude_defaults=True),
    ]


def _train(
    bench: Workbench, model: PreTrainedModel, trial: Trial, observe: Observer
) -> TrainResult:
    config, seed = bench.config.train, derive(trial.seed, trial.number, "train")
    groups = rates_of(model, config, whole=trial.strategy == "full" or config.backbone)
    taken = 0 if trial.strategy in REFERENCES else config.steps_taken
    return train(model, bench.task, config, groups, seed, observe, bench.prefix, taken)


def _measure(
    bench: Workbench, model: PreTrainedModel, result: TrainResult
) -> tuple[Measurement, ...]:
    """Validation as kept by training; test is touched here, once."""
    test = evaluate(model, bench.task, bench.task.test, bench.config.train.precision)
    metric = bench.task.metric
    return (
        Measurement(metric, "validation", result.score),
        Measurement(metric, "test", test),
    )


def _sparsity(
    bench: Workbench, structure: Structure, model: PreTrainedModel
) -> tuple[Measurement, ...]:
    """What is zero or gone, counted after training, where a structure takes anything away."""
    if not any(c.removes for c in structure.candidates):
        return ()
    zeros, _ = count_zeros(model)
    positions = bench.space.positions
    dense, left = (
        linear_weights(positions),
        linear_weights(narrow(positions, structure.candidates)),
    )
    return (Measurement(SPARSITY, "test", (zeros + dense - left) / dense),)


def _head_params(model: PreTrainedModel) -> int:
    return sum(p.numel() for _, p in head_parameters(model))


def pack_weights(
    model: PreTrainedModel, classes: tuple[str, ...], *, whole: bool = False
) -> bytes:
    """Attached modules and head as safetensors, or the whole of a model, with the classes in its metadata."""
    metadata = {"format": "pt", "classes": json.dumps(classes)}
    return safetensors.torch.save(weights_of(model, whole=whole), metadata)
