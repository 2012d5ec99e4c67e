"""Whether the service answers, and what it counts."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Depends, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST

import sparsearch
from sparsearch.service.access import may_read
from sparsearch.service.models import HealthModel
from sparsearch.service.routes.asked import TheStore

__all__ = ["router"]

router = APIRouter(tags=["service"])


@router.get("/health")
def check_health(store: TheStore) -> HealthModel:
    """Say whether the database answers; open to everybody."""
    store.studies(limit=1)
    return HealthModel(status="ok", version=sparsearch.__version__)


@router.get("/metrics", dependencies=[Depends(may_read)], response_class=Response)
def read_metrics(request: Request, store: TheStore) -> Any:
    """Requests and studies in Prometheus' text format."""
    return Response(request.app.state.metrics.text(store), media_type=CONTENT_TYPE_LATEST)
