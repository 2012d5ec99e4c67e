"""A service over a filled database."""

from __future__ import annotations

import pytest

from tests.helpers.filled_study import fill, plan

RUN, READ = "run-token-0123456789", "read-token-0123456789"


@pytest.fixture(scope="session")
def filled_url(tmp_path_factory):
    """Two studies: 8 trials with structures and 4 references each."""
    url = f"sqlite:///{tmp_path_factory.mktemp('service') / 'filled.db'}"
    fill(url, "first", plan())
    fill(url, "second", plan())
    return url


@pytest.fixture
def client_of(filled_url, tmp_path):
    """Makes a client of a service with some settings, as it would be from some address."""
    from contextlib import ExitStack

    from fastapi.testclient import TestClient

    from sparsearch.service.app import make_app
    from sparsearch.service.settings import ServiceSettings

    with ExitStack() as opened:

        def make(
            address="127.0.0.1", host="localhost:8642", root_path="", db=filled_url, **settings
        ):
            app = make_app(
                ServiceSettings(
                    db, root_path=root_path, launches=tmp_path / "launches", **settings
                )
            )
            url = f"http://{host}"
            client = TestClient(
                app,
                url,
                raise_server_exceptions=False,
                client=(address, 5000),
                root_path=root_path,
            )
            return opened.enter_context(client)

        yield make


@pytest.fixture
def client(client_of):
    """A client on this machine, of a service without tokens."""
    return client_of()
