"""Transfer: which stored ranking of another task a study may start from."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeAlias

from sparsearch.config import StudyConfig
from sparsearch.errors import StoreError
from sparsearch.results.store import Store
from sparsearch.results.values import Trial
from sparsearch.search.strategies import TRANSFER
from sparsearch.spaces.budget import Budget

__all__ = ["FindSource", "finder", "with_source", "with_sources"]

FindSource: TypeAlias = Callable[[Budget], str | None]
"""The key of the ranking to transfer to a budget, None where there is none."""


def finder(
    store: Store | None, config: StudyConfig, task: str, space: str, weights: Callable[[], str]
) -> FindSource:
    """Looks up what may be transferred to a study: what its configuration names, or the best ranking of another task.

    Args:
        store: None where there is no database yet.
        config: Of the study.
        task: Fingerprint of its task.
        space: Fingerprint of its space.
        weights: Gives the weight fingerprint of its backbone; asked only where something might fit.
    """
    given = config.search.transfer_from

    def find(budget: Budget) -> str | None:
        if store is None:
            return None
        named = store.ranking(given) if given is not None else None
        if named is not None:
            return given if (named.backbone, named.space) == (weights(), space) else None
        best = functools.partial(
            store.transferable,
            space,
            task,
            study=given,
            max_trainable_params=budget.max_trainable_params,
        )
        return None if best() is None else best(backbone=weights())

    return find


def with_sources(trials: Sequence[Trial], find: FindSource) -> tuple[Trial, ...]:
    """Trials of ``transfer`` with the ranking that they take; the others as they are.

    Raises:
        StoreError: If there is none.
    """
    return tuple(with_source(t, find) if t.strategy == TRANSFER else t for t in trials)


def with_source(trial: Trial, find: FindSource) -> Trial:
    """A trial of ``transfer`` that names the ranking it takes.

    Raises:
        StoreError: If there is none.
    """
    assert trial.budget is not None, "only references have no budget"
    key = find(trial.budget)
    if key is None:
        raise StoreError(
            "strategy transfer: the database holds no s3pet ranking of this backbone and space, made for another task",
            "run a study of another task with the same model and space first, name one of the same task in "
            "search.transfer_from, or leave transfer out",
        )
    return replace(trial, settings=(*trial.settings, ("search.transfer_from", key)))
