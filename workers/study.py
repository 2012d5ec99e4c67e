"""The study loop: plan the trials, run those that are not finished, write each outcome as it ends."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch

from sparsearch.config import StudyConfig
from sparsearch.errors import StoreError
from sparsearch.results.store import Store
from sparsearch.results.values import Outcome, StudyRecord, StudySpec, Trial
from sparsearch.search.strategies import REFERENCES
from sparsearch.spaces.budget import Budget
from sparsearch.workers.preflight import Preflight, check_study
from sparsearch.workers.runners import InProcessRunner
from sparsearch.workers.workbench import Workbench, open_workbench

__all__ = ["Listener", "plan", "run"]

_RENEW_SECONDS = 15.0
_LEASE_SECONDS = 600.0  # longer than any phase without a step, such as measuring a large split


class Listener(Protocol):
    """Told how a study goes; decides nothing."""

    def checked(self, preflight: Preflight) -> None:
        """The study is valid."""

    def opened(self, study: str, queued: Sequence[Trial], finished: int) -> None:
        """The trials still to run are known."""

    def started(self, trial: Trial) -> None:
        """A trial begins."""

    def progressed(self, phase: str, done: int, total: int, note: str) -> None:
        """The current trial made a step."""

    def finished(self, trial: Trial, outcome: Outcome) -> None:
        """A trial's outcome is stored."""


class Quiet:
    """A listener that looks away."""

    def checked(self, preflight: Preflight) -> None:
        """Nothing."""

    def opened(self, study: str, queued: Sequence[Trial], finished: int) -> None:
        """Nothing."""

    def started(self, trial: Trial) -> None:
        """Nothing."""

    def progressed(self, phase: str, done: int, total: int, note: str) -> None:
        """Nothing."""

    def finished(self, trial: Trial, outcome: Outcome) -> None:
        """Nothing."""


def plan(config: StudyConfig, budgets: Sequence[Budget]) -> tuple[Trial, ...]:
    """Every trial of a study in order: seed by seed; the references, then each budget's strategies."""
    strategies = list(dict.fromkeys([config.search.strategy, *config.baselines]))
    cells: list[tuple[str, Budget | None, int]] = []
    for seed in config.seeds:
        cells += [(s, None, seed) for s in strategies if s in REFERENCES]
        cells += [(s, b, seed) for b in budgets for s in strategies if s not in REFERENCES]
    return tuple(Trial(number, *cell) for number, cell in enumerate(cells))


def run(
    study: str | Path | Mapping[str, Any] | StudyConfig,
    db: str = "sqlite:///sparsearch.db",
    overrides: Sequence[str] = (),
    listener: Listener | None = None,
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

    Example:
        >>> run("study.yaml").finished                               # doctest: +SKIP
        15
    """
    listen = listener or Quiet()
    checked = check_study(study, overrides)  # type: ignore[arg-type]
    config = checked.config
    listen.checked(checked)
    if config.workers.threads is not None:
        torch.set_num_threads(config.workers.threads)
    spec = StudySpec(
        name=config.name,
        config=json.dumps(_identity(config), sort_keys=True),
        model=config.model.path,
        task=config.task.title,
        metric=config.task.metric,
        backbone_params=checked.space.backbone_params,
        trials=plan(config, checked.budgets),
    )
    bench = None if _knows(db, config.name) else open_workbench(config)
    with Store.open(db, create=True) as store:
        _drive(store, spec, config, listen, bench)
        return store.find_study(config.name)


def _knows(db: str, study: str) -> bool:
    """Whether a database holds a study; one that is not there yet is not created for the question."""
    try:
        with Store.open(db, create=False) as store:
            return study in {record.name for record in store.studies()}
    except StoreError:
        return False


def _identity(config: StudyConfig) -> dict[str, Any]:
    """What two runs of one study must agree on; a setting left out equals its default, now and in later versions."""
    return config.model_dump(mode="json", exclude={"workers"}, exclude_defaults=True)


def _drive(
    store: Store, spec: StudySpec, config: StudyConfig, listen: Listener, bench: Workbench | None
) -> None:
    """Hold the study's lease while its unfinished trials run."""
    store.begin_study(spec)
    store.acquire(spec.name, _LEASE_SECONDS)
    try:
        queued = store.queued(spec.name)
        listen.opened(spec.name, queued, len(spec.trials) - len(queued))
        if not queued:
            return
        runner = InProcessRunner(bench or open_workbench(config), store.ranking)
        renewed = time.monotonic()

        def started(trial: Trial) -> None:
            store.start(spec.name, trial.number)
            listen.started(trial)

        def observe(phase: str, done: int, total: int, note: str = "") -> None:
            nonlocal renewed
            if time.monotonic() - renewed > _RENEW_SECONDS:
                store.renew(spec.name, _LEASE_SECONDS)
                renewed = time.monotonic()
            listen.progressed(phase, done, total, note)

        for trial, outcome in runner.run(queued, started, observe):
            store.finish(spec.name, trial.number, outcome)
            listen.finished(trial, outcome)
    finally:
        store.release(spec.name)
