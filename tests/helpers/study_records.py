"""Trials of the tiny study as its database has them."""

from __future__ import annotations

from sparsearch.results.store.store import Store


def records(db):
    with Store.open(db, create=False) as store:
        return store.trials("tiny")
