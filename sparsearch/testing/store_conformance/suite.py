"""What any store must do: inherit ``StoreConformance`` and override its fixtures."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from sparsearch.results.store.store import Store
from sparsearch.results.store.writing.lease import Owner
from sparsearch.testing.store_conformance.answers import AnswersConformance
from sparsearch.testing.store_conformance.leases import LeasesConformance
from sparsearch.testing.store_conformance.studies import StudiesConformance
from sparsearch.testing.store_conformance.trials import TrialsConformance

__all__ = ["StoreConformance"]


class StoreConformance(
    StudiesConformance, TrialsConformance, LeasesConformance, AnswersConformance
):
    """Tests of the contract in ``Store``'s docstring.

    A subclass gives a fixture ``store_url``: the URL of a database that does not exist yet, or is
    empty, anew for each test.
    """

    ELSEWHERE = Owner("another-machine", 4711, 1.0)

    @pytest.fixture
    def store(self, store_url: str) -> Iterator[Store]:
        """A store that writes."""
        with Store.open(store_url, create=True) as store:
            yield store

    @pytest.fixture
    def other(self, store: Store, store_url: str) -> Iterator[Store]:
        """The same database, opened by a driver on another machine."""
        with Store.open(store_url, create=True, owner=self.ELSEWHERE) as other:
            yield other
