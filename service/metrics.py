"""Counts and times for Prometheus."""

from __future__ import annotations

import time
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sparsearch.results.store.store import Store

__all__ = ["RequestMetrics"]


class _Studies(Collector):
    """How many studies there are, by state, as the database says when it is asked."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def collect(self) -> Iterator[Metric]:
        """One gauge."""
        gauge = GaugeMetricFamily("sparsearch_studies", "Studies by state.", labels=["state"])
        counts = dict.fromkeys(("running", "finished", "unfinished"), 0)
        for study in self.store.studies():
            counts[study.state] += 1
        for state, count in counts.items():
            gauge.add_metric([state], count)
        yield gauge


class RequestMetrics:
    """What an application was asked, and how long it took; a middleware that counts, and the text it gives."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        labels = ("method", "route", "status")
        self.requests = Counter(
            "sparsearch_requests", "Requests that were answered.", labels, registry=self.registry
        )
        self.seconds = Histogram(
            "sparsearch_request_seconds", "Time to the end of the answer.", labels[:2],
            registry=self.registry,
        )  # fmt: skip

    def middleware(self, app: ASGIApp) -> ASGIApp:
        """The application, counted."""

        async def counted(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] != "http":
                await app(scope, receive, send)
                return
            started, status = time.perf_counter(), 500

            async def noted(message: Message) -> None:
                nonlocal status
                if message["type"] == "http.response.start":
                    status = message["status"]
                await send(message)

            try:
                await app(scope, receive, noted)
            finally:  # paths of users would be labels without end: the route's own has no names in it
                route = getattr(scope.get("route"), "path", "none")
                self.requests.labels(scope["method"], route, str(status)).inc()
                self.seconds.labels(scope["method"], route).observe(time.perf_counter() - started)

        return counted

    def text(self, store: Store) -> bytes:
        """Everything, in Prometheus' text format."""
        studies = CollectorRegistry()
        studies.register(_Studies(store))
        return generate_latest(self.registry) + generate_latest(studies)
