"""`sparsearch serve`: the studies of a database over HTTP."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Annotated

import typer

from sparsearch.cli.console import errors
from sparsearch.cli.options import DEFAULT_DB, Database
from sparsearch.errors import SparsearchError

__all__ = ["serve"]


def serve(
    db: Database = DEFAULT_DB,
    host: Annotated[
        str, typer.Option(metavar="ADDRESS", help="Any but the loopback's needs a token.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8642,
    root_path: Annotated[
        str, typer.Option(metavar="/PREFIX", help="The path under which a proxy serves it.")
    ] = "",
    launches: Annotated[
        Path, typer.Option(metavar="DIR", help="Folder of the studies that are launched here.")
    ] = Path("sparsearch-launches"),
    drivers: Annotated[int, typer.Option(min=1, help="Studies that run at a time.")] = 1,
    ray_jobs: Annotated[
        str | None,
        typer.Option(
            metavar="URL", help="Run them as jobs of the Ray cluster with this dashboard."
        ),
    ] = None,
    root: Annotated[
        list[Path] | None,
        typer.Option(metavar="DIR", help="A folder of data and models to allow; repeatable."),
    ] = None,
    allow_hub: Annotated[
        bool, typer.Option("--allow-hub", help="Allow data and models of the hub.")
    ] = False,
    allow_import: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PACKAGE", help="A package whose functions studies may name; repeatable."
        ),
    ] = None,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="A host name by which it may be called; repeatable."),
    ] = None,
    rate: Annotated[
        float, typer.Option(min=0, help="Requests a second of one client; 0 for any number.")
    ] = 200.0,
    streams: Annotated[
        int, typer.Option(min=1, help="Event streams that may be open at a time.")
    ] = 400,
    proxy: Annotated[
        list[str] | None,
        typer.Option(metavar="ADDRESS", help="A proxy that says who the client is; repeatable."),
    ] = None,
    webhook: Annotated[
        list[str] | None,
        typer.Option(
            metavar="URL",
            envvar="SPARSEARCH_WEBHOOKS",
            show_envvar=False,
            help="Is told how launched studies end; repeatable.",
        ),
    ] = None,
) -> None:
    """Serve the studies of a database over HTTP, and launch studies: the REST API under /api/v1.

    Tokens come from the environment: SPARSEARCH_READ_TOKEN lets one read, SPARSEARCH_RUN_TOKEN do everything; with
    _FILE behind the name, from a file. So does SPARSEARCH_WEBHOOK_SECRET, which signs what webhooks are told.
    """
    if importlib.util.find_spec("fastapi") is None or importlib.util.find_spec("uvicorn") is None:
        raise SparsearchError(
            "the service needs FastAPI and uvicorn", "pip install 'sparsearch[service]'"
        )
    from sparsearch.service.server import run_server
    from sparsearch.service.settings import ServiceSettings, read_secrets

    settings = ServiceSettings(
        db,
        host,
        port,
        root_path,
        hosts=tuple(allow_host or ()),
        launches=launches,
        drivers=drivers,
        ray_jobs=ray_jobs,
        roots=tuple(root or ()),
        hub=allow_hub,
        packages=tuple(allow_import or ()),
        rate=rate,
        streams=streams,
        proxies=tuple(proxy or ()),
        webhooks=tuple(webhook or ()),
        **read_secrets(),
    )
    run_server(
        settings,
        lambda address: errors().print(
            f"serving at {address}, the API at {address}api/v1", soft_wrap=True
        ),
    )
