"""Trials of a study, the tiny one if not said, as its database has them."""

from __future__ import annotations

from sparsearch.results.store.store import Store


def records(db, study="tiny"):
    with Store.open(db, create=False) as store:
        return store.trials(study)
