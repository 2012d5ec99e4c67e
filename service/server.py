"""The server process: a socket, and uvicorn on it."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable

import uvicorn

from sparsearch.errors import SparsearchError
from sparsearch.service.app import make_app
from sparsearch.service.settings import ServiceSettings

__all__ = ["run_server"]

_GOODBYE_SECONDS = 10
"""After which streams of events, which have no end while a study runs, are cut."""


def run_server(settings: ServiceSettings, ready: Callable[[str], None]) -> None:
    """Serve until the process is told to end.

    Args:
        settings: Where, and to whom.
        ready: Called with the address of the pages once the socket listens.

    Raises:
        SparsearchError: If the address is taken or not this machine's.
        StoreError: If the database cannot be used.
    """
    if not settings.hub:  # nothing is downloaded, by exports and launched studies neither
        os.environ["HF_HUB_OFFLINE"] = "1"
    if (
        settings.ray_jobs
    ):  # RAY_ADDRESS would win over it; what checks studies must know that there is a cluster
        os.environ["RAY_API_SERVER_ADDRESS"] = settings.ray_jobs
        os.environ.setdefault("RAY_ADDRESS", "auto")
    app = make_app(settings)
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind((settings.host, settings.port))
        except OSError as error:
            raise SparsearchError(
                f"cannot listen on {settings.host} port {settings.port}: {error}",
                "choose another --port, or end the server that has it",
            ) from error
        listening.listen(128)
        name = f"[{settings.host}]" if ":" in settings.host else settings.host
        ready(f"http://{name}:{listening.getsockname()[1]}{settings.root_path}/")
        config = uvicorn.Config(
            app,
            log_level="warning",
            root_path=settings.root_path,
            server_header=False,
            proxy_headers=bool(settings.proxies),
            forwarded_allow_ips=list(settings.proxies),
            timeout_graceful_shutdown=_GOODBYE_SECONDS,
        )
        uvicorn.Server(config).run(sockets=[listening])
