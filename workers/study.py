"""The study loop: plan the trials, run those that are not finished, write each outcome as it ends."""

from __future__ import annotations

import functools
import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from sparsearch.config.registry import TRANSFER
from sparsearch.config.study import BudgetConfig, StudyConfig
from sparsearch.errors import LeaseError, MissingStoreError, StoreError
from sparsearch.results.records import Outcome, StudyRecord, StudySpec, Trial, TrialRecord
from sparsearch.results.store.connection.database import check_creatable
from sparsearch.results.store.store import DEFAULT_URL, Store
from sparsearch.results.store.writing.growth import key_of
from sparsearch.search.phases import phase
from sparsearch.search.tasks.data_summary import DataSummary
from sparsearch.spaces.backbone.identity import (
    BackboneId,
    form_of,
    same_fingerprints,
    same_settings,
)
from sparsearch.spaces.budget import resolve_all
from sparsearch.workers.callbacks import StudyCallbacks
from sparsearch.workers.driver import Driver, DriverRules
from sparsearch.workers.execution.in_process import InProcessRunner
from sparsearch.workers.execution.runner import Runner
from sparsearch.workers.plan import asks_for_trial, plan, reader_content, study_identity
from sparsearch.workers.preflight import Preflight, check_study
from sparsearch.workers.resources import quieten_ray, ray_address
from sparsearch.workers.scheduling.raced_plan import RacedPlan, is_raced, wanted_again
from sparsearch.workers.scheduling.scheduler import FixedPlan, Scheduler
from sparsearch.workers.scheduling.search_space import SearchSpace
from sparsearch.workers.scheduling.transfer import FindSource, finder, with_source, with_sources
from sparsearch.workers.trials.execute import FindRanking
from sparsearch.workers.trials.ranking_key import shared_ranking
from sparsearch.workers.trials.session import identify_backbone, open_session

__all__ = [
    "make_scheduler",
    "queue_again",
    "run",
]

_RENEW_SECONDS = 60.0


_DRIVEN: set[tuple[str, str]] = set()
"""Databases and studies that this process drives: a lease tells processes apart, not threads."""


_DRIVING = threading.Lock()


def run(
    study: str | Path | Mapping[str, Any] | StudyConfig,
    db: str = DEFAULT_URL,
    overrides: Sequence[str] = (),
    listener: StudyCallbacks | None = None,
) -> StudyRecord:
    """Launch a study, or continue it: the same command ends with the same trials, whatever happened between.

    Args:
        study: A study file, its content, or a StudyConfig.
        db: SQLAlchemy URL or path of a SQLite file.
        overrides: ``key.path=value`` settings that win over the file.
        listener: Told how it goes.

    Returns:
        The study as stored; ``sparsearch.open(db)`` answers questions about it.

    Raises:
        ConfigError: If the study is wrong; every problem is reported, nothing is written.
        InfeasibleError: If a budget is too small for any candidate.
        LeaseError: If another driver runs this study.
        Stopped: If ``sparsearch stop`` ended it.
        WorkersError: If Ray's workers cannot be started.

    Example:
        >>> run("study.yaml").finished                               # doctest: +SKIP
        15
    """
    listen = listener or StudyCallbacks()
    checked = check_study(study, overrides)  # type: ignore[arg-type]
    config = checked.config
    listen.checked(checked)
    if config.workers.threads is not None:
        torch.set_num_threads(config.workers.threads)
    spec = StudySpec(
        name=config.name,
        config=json.dumps(study_identity(config) | reader_content(config), sort_keys=True),
        model=config.model.location,
        task=config.task.title,
        metric=config.task.score_name,
        backbone_params=checked.space.backbone_params,
        trials=plan(config, checked.budgets),
    )
    backbone = functools.cache(functools.partial(identify_backbone, config))

    def find(store: Store | None) -> FindSource:
        return finder(store, config, spec.task_fingerprint, checked.space, backbone)

    def opened(config: StudyConfig) -> Runner:
        return stack.enter_context(_runner(config, lambda key: store.ranking(key), listen.loaded))

    with ExitStack() as stack:
        runner: Runner | None = None
        stored = _stored_trials(db, config.name)
        spec = replace(spec, trials=_sourced(spec.trials, stored, checked, db, find))
        if stored is None:
            runner = opened(config)
        store = stack.enter_context(Store.open(db, create=True))
        _drive(store, spec, config, listen, lambda c: runner or opened(c), find(store), backbone)
        return store.find_study(config.name)


def _runner(
    config: StudyConfig,
    find_ranking: FindRanking,
    loaded: Callable[[DataSummary], None],
) -> Runner:
    """What the configuration names; Ray takes seconds to import."""
    if config.workers.runner == "ray":
        quieten_ray()
        from sparsearch.workers.execution.ray_runner import RayRunner

        return RayRunner(config, find_ranking, ray_address(config.workers), loaded)
    with phase("loading"):
        session = open_session(config)
    loaded(session.task.summary)
    return InProcessRunner(session, find_ranking)


def _stored_trials(db: str, study: str) -> tuple[TrialRecord, ...] | None:
    """The trials of a study that a database holds; one that is not there yet is not created for the question."""
    try:
        Store.open(db, create=False).close()
    except MissingStoreError:
        check_creatable(db)
        return None
    except StoreError:
        pass  # of an older revision: opening it to write brings it up to date, or says what is wrong
    with Store.open(db, create=True) as store:
        known = study in {record.name for record in store.studies()}
        return store.trials(study) if known else None


def _sourced(
    trials: Sequence[Trial],
    stored: Sequence[TrialRecord] | None,
    checked: Preflight,
    db: str,
    find: Callable[[Store | None], FindSource],
) -> tuple[Trial, ...]:
    """Trials that know what they transfer; looked up before anything is written, for later proposals too."""
    known = {key_of(trial) for trial in stored or ()}
    tuned = stored is None and TRANSFER in checked.config.proposed_strategies
    proposed = [Trial(0, TRANSFER, budget, 0) for budget in checked.budgets if tuned]
    missing = [t for t in trials if t.strategy == TRANSFER and key_of(t) not in known]
    if not proposed and not missing:
        return tuple(trials)
    with ExitStack() as stack:
        try:
            store = stack.enter_context(Store.open(db, create=False))
        except MissingStoreError:
            store = None
        source = find(store)
        with_sources(proposed, source)
        return tuple(with_source(t, source) if t in missing else t for t in trials)


def make_scheduler(
    store: Store,
    spec: StudySpec,
    config: StudyConfig,
    find: FindSource,
    listen: StudyCallbacks | None = None,
) -> Scheduler:
    """The outer loop of a stored study, knowing all that has ended: its planned trials, and proposals if it has any.

    Args:
        store: Where proposals go.
        spec: Its planned trials are numbered from 0, proposals follow.
        config: With or without ``outer``.
        find: What may be transferred.
        listen: Told of trials that a race leaves out.
    """
    asks_for = asks_for_trial(spec, config)
    queued = [t for t in store.queued(spec.name) if asks_for(t)]
    feared = _poison_trials(store, spec.name)
    if is_raced(config):
        told = listen or StudyCallbacks()

        def leave_out(trial: Trial, outcome: Outcome) -> None:
            store.finish(spec.name, trial.number, outcome)
            told.started(trial)
            told.finished(trial, outcome)

        asked = [t for t in store.trials(spec.name) if asks_for(t)]
        return RacedPlan(config, asked, queued, leave_out, feared)
    if config.outer is None:
        return FixedPlan(sorted(queued, key=lambda trial: trial.number in feared))
    from sparsearch.workers.scheduling.optuna_scheduler import OptunaScheduler, Priors, StudyState

    budgets, known = resolve_all(config.budgets, spec.backbone_params), store.trials(spec.name)
    first = [t.strategy for t in known[len(spec.trials) :]][:1]
    # Whether there are priors is settled with the first proposal, whatever other studies find later.
    priors = config.outer.priors and first in ([], [TRANSFER])
    return OptunaScheduler(
        config,
        SearchSpace(config, budgets, spec.backbone_params),
        StudyState(len(spec.trials), known, queued, feared),
        lambda trial: store.add_trial(spec.name, trial),
        Priors(find, [b for b in budgets if priors and find(b) is not None]),
    )


def queue_again(store: Store, spec: StudySpec, config: StudyConfig) -> Sequence[TrialRecord]:
    """Queue what a race left out before and what is asked for now, before there is a scheduler.

    Args:
        store: Holds the study's lease.
        spec: Its planned trials.
        config: As it is now.

    Returns:
        All trials, as they are then.
    """
    asks_for, stored = asks_for_trial(spec, config), store.trials(spec.name)
    again = wanted_again(config, [t for t in stored if asks_for(t)])
    if again:
        store.requeue(spec.name, again)
    return store.trials(spec.name) if again else stored


def _poison_trials(store: Store, study: str) -> set[int]:
    """Numbers of trials that two drivers did not survive: they come last, so that they keep no other waiting."""
    ended = Counter(a.trial for a in store.attempts(study) if a.state == "interrupted")
    return {number for number, times in ended.items() if times > 1}


@contextmanager
def _held(store: Store, study: str) -> Iterator[None]:
    """Hold the study's lease, renewed also while nothing is heard of any trial."""
    here = store.label, study
    with _DRIVING:
        if here in _DRIVEN:
            raise LeaseError(
                f"study {study!r} is being run by this process already", "wait until it ends"
            )
        store.acquire(study)
        _DRIVEN.add(here)
    over = threading.Event()

    def renew() -> None:
        while not over.wait(_RENEW_SECONDS):
            with suppress(StoreError):  # whoever lost the lease hears of it when it writes
                store.renew(study)

    thread = threading.Thread(target=renew, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        _DRIVEN.discard(here)
        store.release(study)


def _check_backbone(store: Store, study: str, backbone: Callable[[str], BackboneId]) -> None:
    """A study that has begun goes on with the backbone that it began with.

    Raises:
        StoreError: If the model's weights, or the settings by which they compute, are others now.
    """
    known = _begun_with(store, study)
    if known is None:
        return
    now = backbone(form_of(known.weight_fingerprint))
    if not same_fingerprints(known.weight_fingerprint, now.weight_fingerprint):
        was, here = known.weight_fingerprint[:12], now.weight_fingerprint[:12]
        changed = f"other weights of {known.path!r} (fingerprint {was}, now {here})"
    elif not same_settings(known.config_hash, now.config_hash):
        changed = f"other settings in the config of {known.path!r}"
    else:
        return
    raise StoreError(
        f"study {study!r} began with {changed}",
        "restore them to continue the study, or choose another name",
    )


def _begun_with(store: Store, study: str) -> BackboneId | None:
    """The backbone of a study's first outcome; of those stored before it was kept, that of a structure."""
    if (known := store.find_study(study).backbone) is not None:
        return BackboneId(**known)
    scored = (t.structure for t in store.trials(study) if t.score is not None)
    found = next(filter(None, scored), None)
    return None if found is None else store.load_structure(found).backbone


def _begin(store: Store, spec: StudySpec, backbone: Callable[[str], BackboneId]) -> None:
    """Queue the trials of a held study that are not stored yet, once it is sure that they may run."""
    if not {key_of(t) for t in spec.trials} <= {key_of(t) for t in store.trials(spec.name)}:
        store.check_config(spec)
        _check_backbone(store, spec.name, backbone)
    store.begin_study(spec)


def _with_budgets(config: StudyConfig, stored: StudyRecord) -> StudyConfig:
    """A configuration with all budgets of its stored study: a search that draws budgets serves them all."""
    budgets = stored.settings["budgets"]
    return config.model_copy(
        update={"budgets": [BudgetConfig.model_validate(budget) for budget in budgets]}
    )


def _drive(
    store: Store,
    spec: StudySpec,
    config: StudyConfig,
    listen: StudyCallbacks,
    runner: Callable[[StudyConfig], Runner],
    find: FindSource,
    backbone: Callable[[str], BackboneId],
) -> None:
    """Hold the study's lease while those of its unfinished trials run that are asked for."""
    if spec.name not in {record.name for record in store.studies()}:
        store.begin_study(spec)
    with _held(store, spec.name):
        _begin(store, spec, backbone)
        asks_for = asks_for_trial(spec, config)
        stored = queue_again(store, spec, config)
        queued = [trial for trial in store.queued(spec.name) if asks_for(trial)]
        others = [trial for trial in stored if not asks_for(trial)]
        asked = len(stored) - len(others)
        proposed = 0 if config.outer is None else config.outer.trials
        to_propose = max(0, len(spec.trials) + proposed - asked)
        listen.opened(spec.name, queued, asked - len(queued), to_propose)
        if others:
            listen.also_stored(spec.name, others)
        if not queued and not to_propose:
            return
        _check_backbone(store, spec.name, backbone)
        config = _with_budgets(config, store.find_study(spec.name))
        budgets = resolve_all(config.budgets, spec.backbone_params)
        loop = make_scheduler(store, spec, config, find, listen)
        Driver(
            store,
            spec.name,
            runner(config),
            loop,
            DriverRules(
                listen,
                lambda trial: shared_ranking(config, budgets, trial),
                config.workers.max_attempts,
                config.workers.attempt_seconds,
            ),
        ).run()
