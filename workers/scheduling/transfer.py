"""Transfer: which stored ranking of another task a study may start from."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeAlias

from sparsearch.config.registry import TRANSFER
from sparsearch.config.study import StudyConfig
from sparsearch.errors import StoreError
from sparsearch.results.records import Trial
from sparsearch.results.store.store import Store
from sparsearch.spaces.backbone.identity import FORMS, BackboneId
from sparsearch.spaces.backbone.legacy import legacy_space_fingerprint
from sparsearch.spaces.budget import Budget
from sparsearch.spaces.space import Space

__all__ = ["FindSource", "finder", "with_source", "with_sources"]

FindSource: TypeAlias = Callable[[Budget], str | None]
"""The key of the ranking to transfer to a budget, None where there is none."""


def finder(
    store: Store | None,
    config: StudyConfig,
    task: str,
    space: Space,
    backbone: Callable[[str], BackboneId],
) -> FindSource:
    """Looks up what may be transferred to a study: what its configuration names, or the best ranking of another task.

    Args:
        store: None where there is no database yet.
        config: Of the study.
        task: Fingerprint of its task.
        space: Its space.
        backbone: Gives its backbone, the fingerprint in a form; asked only where something might fit.
    """
    given = config.search.transfer_from
    identities = [(space.fingerprint, FORMS[-1])]
    if (legacy := legacy_space_fingerprint(space)) is not None:
        identities.append((legacy, "2-"))

    def find(budget: Budget) -> str | None:
        if store is None:
            return None
        named = store.ranking(given) if given is not None else None
        if given is not None and named is not None:
            fits = store.searched_under(given, budget) and any(
                named.space == s and named.backbone == backbone(f).weight_fingerprint
                for s, f in identities
            )
            return given if fits else None
        for fingerprint, form in identities:
            best = functools.partial(
                store.transferable,
                fingerprint,
                task,
                study=given,
                budget=budget,
            )
            if best() is None:
                continue
            key = best(backbone=backbone(form).weight_fingerprint)
            if key is not None:
                return key
        return None

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
        weighed = "".join(f", and searched under {name}" for name in trial.budget.takes_away)
        raise StoreError(
            "strategy transfer: the database holds no s3pet ranking of this backbone and space, made for another task"
            + weighed,
            "run a study of another task with the same model and space first, name one of the same task in "
            "search.transfer_from, or leave transfer out",
        )
    return replace(trial, settings=(*trial.settings, ("search.transfer_from", key)))
