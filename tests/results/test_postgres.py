"""The store over PostgreSQL: the conformance suite, and what only a server can do."""

import pytest

from sparsearch.results.conformance import StoreConformance


class TestPostgres(StoreConformance):
    @pytest.fixture
    def store_url(self, postgres_url: str) -> str:
        return postgres_url
