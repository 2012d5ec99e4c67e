"""The application: every part of the service put together."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import Depends, FastAPI

import sparsearch
from sparsearch.results.store.store import Store
from sparsearch.service import PREFIX
from sparsearch.service.access import HostCheck, may_read
from sparsearch.service.body_limit import BodyLimit
from sparsearch.service.headers import SafeHeaders
from sparsearch.service.launches.supervisor import Supervisor
from sparsearch.service.metrics import RequestMetrics
from sparsearch.service.models import ProblemModel
from sparsearch.service.problems import add_handlers
from sparsearch.service.routes import best, exports, health, launches, structures, studies, uploads
from sparsearch.service.settings import ServiceSettings

__all__ = ["PREFIX", "make_app"]

_MOST_BYTES = 1_000_000
"""Of a request: a study file has some thousand."""

_ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ProblemModel} for status in (400, 401, 403, 404, 409, 413, 422, 503)
}


def make_app(settings: ServiceSettings) -> FastAPI:
    """The service over one database, as an ASGI application.

    The database is created, or brought up to date.

    Args:
        settings: Where, and to whom.

    Raises:
        StoreError: If the database cannot be used.
    """
    Store.open(settings.db, create=True).close()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        supervisor = Supervisor(settings.launches, settings.db, settings.drivers)
        with Store.open(settings.db, create=False) as app.state.store, supervisor:
            yield

    app = FastAPI(
        title="sparsearch",
        version=sparsearch.__version__,
        summary=(sparsearch.__doc__ or "").splitlines()[0],
        openapi_url=f"{PREFIX}/openapi.json",
        docs_url=None,  # these pages load scripts from elsewhere
        redoc_url=None,
        generate_unique_id_function=lambda route: route.name,  # clients name their functions so
        lifespan=lifespan,
    )
    app.state.settings = settings
    app.state.metrics = RequestMetrics()
    add_handlers(app)
    app.add_middleware(app.state.metrics.middleware)
    app.add_middleware(BodyLimit, most=_MOST_BYTES)
    app.add_middleware(HostCheck, settings=settings)
    app.add_middleware(SafeHeaders)
    app.include_router(health.router, prefix=PREFIX, responses=_ERRORS)
    for room in (studies, best, structures, exports, launches, uploads):
        app.include_router(
            room.router, prefix=PREFIX, responses=_ERRORS, dependencies=[Depends(may_read)]
        )
    return app
