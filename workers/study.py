"""The study loop: plan the trials, run those that are not finished, write each outcome as it ends."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from sparsearch.config import StudyConfig
from sparsearch.errors import MissingStoreError, StoreError
from sparsearch.results.store import DEFAULT_URL, Store
from sparsearch.results.values import Outcome, StudyRecord, StudySpec, Trial
from sparsearch.search.strategies import REFERENCES
from sparsearch.spaces.budget import Budget
from sparsearch.workers.preflight import Preflight, check_study
from sparsearch.workers.runners import InProcessRunner
from sparsearch.workers.workbench import Workbench, open_workbench

__all__ = ["Listener", "plan", "run"]

_RENEW_SECONDS = 15.0


class Listener:
    """Told how a study goes, and decides nothing; override what you want to hear."""

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
    db: str = DEFAULT_URL,
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
    listen = listener or Listener()
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
        Store.open(db, create=False).close()
    except MissingStoreError:
        return False
    except StoreError:
        pass  # of an older revision: opening it to write brings it up to date, or says what is wrong
    with Store.open(db, create=True) as store:
        return study in {record.name for record in store.studies()}


def _identity(config: StudyConfig) -> dict[str, Any]:
    """What two runs of one study must agree on: its settings and the content of its local data files.

    A setting left out equals its default, now and in later versions.
    """
    settings = config.model_dump(mode="json", exclude={"workers"}, exclude_defaults=True)
    content = {}
    for split, name in (config.task.data.data_files or {}).items():
        with (config.folder / name).open("rb") as stream:
            content[split] = hashlib.file_digest(stream, "sha256").hexdigest()
    return settings | ({"data_sha256": content} if content else {})


def _drive(
    store: Store, spec: StudySpec, config: StudyConfig, listen: Listener, bench: Workbench | None
) -> None:
    """Hold the study's lease while its unfinished trials run."""
    store.begin_study(spec)
    store.acquire(spec.name)
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
                store.renew(spec.name)
                renewed = time.monotonic()
            listen.progressed(phase, done, total, note)

        for trial, outcome in runner.run(queued, started, observe):
            store.finish(spec.name, trial.number, outcome)
            listen.finished(trial, outcome)
    finally:
        store.release(spec.name)
