"""The application: every part of the service put together."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import Depends, FastAPI
from starlette.concurrency import run_in_threadpool

import sparsearch
from sparsearch.results.store.store import Store
from sparsearch.service import PREFIX
from sparsearch.service.access import HostCheck, may_read
from sparsearch.service.answer_cache import AnswerCache
from sparsearch.service.handlers import add_handlers
from sparsearch.service.headers import SafeHeaders
from sparsearch.service.launches.driver_runner import LocalProcesses
from sparsearch.service.launches.ray_jobs import RayJobs
from sparsearch.service.launches.supervisor import Supervisor
from sparsearch.service.launches.webhooks import Webhooks
from sparsearch.service.limits.body_limit import BodyLimit
from sparsearch.service.limits.rate_limit import RateLimit
from sparsearch.service.limits.streams import OpenStreams
from sparsearch.service.metrics import RequestMetrics
from sparsearch.service.models import ProblemModel
from sparsearch.service.pages import (
    comparing,
    figures,
    files,
    launching,
    overview,
    places,
    session,
    structure,
    study,
)
from sparsearch.service.pages.rendering import compile_templates
from sparsearch.service.pages.study_view import StudyViews
from sparsearch.service.routes import best, exports, health, launches, structures, studies, uploads
from sparsearch.service.settings import ServiceSettings
from sparsearch.service.study_events import StudyWatches

__all__ = ["PREFIX", "make_app"]

_MOST_BYTES = 1_000_000
"""Of a request: a study file has some thousand."""

_ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ProblemModel} for status in (400, 401, 403, 404, 409, 413, 422, 429, 503)
}


def _warm(views: StudyViews) -> None:
    """What takes long the first time, before somebody waits for it."""
    compile_templates()
    views.warm()


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
        runner = (
            RayJobs(settings.ray_jobs, settings.db)
            if settings.ray_jobs
            else LocalProcesses(settings.db)
        )
        supervisor = Supervisor(settings.launches, settings.db, settings.drivers, runner)
        with Store.open(settings.db, create=False) as store, supervisor:
            app.state.store, app.state.views = store, StudyViews(store)
            app.state.watches = StudyWatches(store)
            warming = asyncio.create_task(run_in_threadpool(_warm, app.state.views))
            webhooks = Webhooks(settings.launches, store, settings.webhooks, settings.webhook_key)
            telling = asyncio.create_task(webhooks.run())
            yield
            telling.cancel()
            await asyncio.wait([telling, warming])

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
    app.state.streams = OpenStreams(settings.streams)
    add_handlers(app)
    app.add_middleware(AnswerCache)
    app.add_middleware(app.state.metrics.middleware)
    app.add_middleware(BodyLimit, most=_MOST_BYTES)
    if settings.rate:
        app.add_middleware(RateLimit, settings=settings, exempt=f"{PREFIX}/health")
    app.add_middleware(HostCheck, settings=settings)
    app.add_middleware(SafeHeaders)
    app.include_router(health.router, prefix=PREFIX, responses=_ERRORS)
    for room in (studies, best, structures, exports, launches, uploads):
        app.include_router(
            room.router, prefix=PREFIX, responses=_ERRORS, dependencies=[Depends(may_read)]
        )
    for open_to_all in (session, files):
        app.include_router(open_to_all.router)
    for pages in (overview, study, figures, structure, comparing, places, launching):
        app.include_router(pages.router, dependencies=[Depends(may_read)])
    return app
