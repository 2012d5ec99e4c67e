"""A service over a filled database."""

from __future__ import annotations

import socket
import threading
import time
from contextlib import ExitStack, contextmanager

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


@contextmanager
def served(settings, host="127.0.0.1", port=0, around=lambda app: app):
    """A real server in a thread: its URL, until the context ends."""
    import uvicorn

    from sparsearch.service.app import make_app

    with socket.socket() as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
        listening.listen(128)
        config = uvicorn.Config(
            around(make_app(settings)),
            log_level="warning",
            lifespan="on",
            timeout_graceful_shutdown=1,
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        try:
            yield f"http://{host}:{listening.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


@pytest.fixture
def serving():
    """Starts real servers, and ends them."""
    with ExitStack() as opened:
        yield lambda settings, **how: opened.enter_context(served(settings, **how))


@pytest.fixture
def plain_environment(monkeypatch, tmp_path):
    """An empty folder, and nothing of ours in the environment."""
    monkeypatch.chdir(tmp_path)
    for name in ("DB", "SERVER", "READ_TOKEN", "RUN_TOKEN", "READ_TOKEN_FILE", "RUN_TOKEN_FILE"):
        monkeypatch.delenv(f"SPARSEARCH_{name}", raising=False)
    monkeypatch.setenv("COLUMNS", "140")
