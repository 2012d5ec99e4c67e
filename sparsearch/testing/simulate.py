"""A whole study on a simulated runner: the real driver, outer loop and store, no model."""

from __future__ import annotations

import json

from sparsearch.config.study import StudyConfig
from sparsearch.results.records import StudyRecord, StudySpec
from sparsearch.results.store.store import Store
from sparsearch.spaces.budget import resolve_all
from sparsearch.testing.simulated_runner import SimulatedRunner
from sparsearch.workers.callbacks import StudyCallbacks
from sparsearch.workers.driver import Driver, DriverRules
from sparsearch.workers.plan import plan
from sparsearch.workers.study import make_scheduler, queue_again

__all__ = ["simulate"]


def simulate(
    config: StudyConfig,
    store: Store,
    runner: SimulatedRunner,
    listener: StudyCallbacks | None = None,
    backbone_params: int = 22_713_216,
) -> StudyRecord:
    """Run a study, or what is left of it, and return it as stored; each trial has a ranking of its own.

    Args:
        config: Its model and data are not looked at.
        store: Open for writing.
        runner: Fresh; its clock starts at 0.
        listener: Told how it goes.
        backbone_params: For budgets that are shares; MiniLM's.
    """
    spec = StudySpec(
        config.name,
        json.dumps(config.model_dump(mode="json", exclude={"race"}, exclude_defaults=True)),
        config.model.location,
        config.task.title,
        config.task.score_name,
        backbone_params,
        plan(config, resolve_all(config.budgets, backbone_params)),
    )
    store.begin_study(spec)
    store.acquire(spec.name)
    try:
        queue_again(store, spec, config)
        loop = make_scheduler(store, spec, config, lambda budget: None, listener)
        with runner:
            Driver(store, spec.name, runner, loop, DriverRules(listener or StudyCallbacks())).run()
    finally:
        store.release(spec.name)
    return store.find_study(spec.name)
