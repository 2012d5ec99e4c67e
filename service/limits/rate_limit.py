"""Refuses who asks too often, and sooner who guesses tokens."""

from __future__ import annotations

import ipaddress
import math
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable

from starlette.requests import HTTPConnection
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from sparsearch.service.access import level_of
from sparsearch.service.problems import Problem, body
from sparsearch.service.settings import ServiceSettings

__all__ = ["Buckets", "RateLimit"]

_BURST_SECONDS = 2.0
_FAILURES_PER_SECOND, _FAILURES = 0.1, 10.0
_MOST_CLIENTS = 10_000


class Buckets:
    """A token bucket for each client, of a bounded number of clients: the one that was seen last longest ago goes.

    A bucket is one time, at which it is full again (the generic cell rate algorithm, ITU-T I.371).

    Args:
        rate: Requests a second for which a bucket is filled.
        burst: Requests that a full bucket lets through at once.
        clock: Seconds.

    Example:
        >>> buckets = Buckets(rate=1, burst=2, clock=lambda: 0.0)
        >>> [buckets.take("a"), buckets.take("a"), buckets.take("a"), buckets.take("b")]
        [0.0, 0.0, 1.0, 0.0]
    """

    def __init__(self, rate: float, burst: float, clock: Callable[[], float]) -> None:
        self.rate, self.burst, self.clock = rate, burst, clock
        self._full_at: OrderedDict[Hashable, float] = OrderedDict()

    def wait(self, client: Hashable) -> float:
        """Seconds until a client may ask again; 0 if it may now."""
        now = self.clock()
        full_at = max(self._full_at.get(client, now), now)
        return max(0.0, full_at - now - (self.burst - 1) / self.rate)

    def take(self, client: Hashable) -> float:
        """Count one request, if it may be; as ``wait``."""
        wait = self.wait(client)
        if not wait:
            now = self.clock()
            self._full_at[client] = max(self._full_at.get(client, now), now) + 1 / self.rate
            self._full_at.move_to_end(client)
            if len(self._full_at) > _MOST_CLIENTS:
                self._full_at.popitem(last=False)
        return wait


class RateLimit:
    """Answers 429 to a client beyond its rate; ``/health`` is not counted.

    A client is an address and what its token lets it do: who has no token empties no bucket of those who have one.
    Wrong tokens count against their address as well. Where these are used up, it gets 429 whatever it sends, but
    for tokens that were right from there before: one neighbour behind a shared address locks nobody out. Whoever logs
    in counts as one who guesses.

    Args:
        app: The application.
        settings: With the rate.
        exempt: Path that is not counted.
    """

    def __init__(self, app: ASGIApp, settings: ServiceSettings, exempt: str) -> None:
        self.app, self.settings, self.exempt = app, settings, exempt
        clock = time.monotonic
        self.requests = Buckets(settings.rate, max(1.0, settings.rate * _BURST_SECONDS), clock)
        self.failures = Buckets(_FAILURES_PER_SECOND, _FAILURES, clock)
        self.known: OrderedDict[tuple[str, int], None] = OrderedDict()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or hand on."""
        if scope["type"] == "http" and not scope["path"].endswith(self.exempt):
            wait = self._wait(scope)
            if wait:
                problem = Problem("too many requests from here", "ask again after Retry-After")
                retry = {"retry-after": str(math.ceil(wait))}
                await JSONResponse(body(problem), 429, retry)(scope, receive, send)
                return
        await self.app(scope, receive, send)

    def _wait(self, scope: Scope) -> float:
        """Seconds until this request may come again; 0 if it may now."""
        request = HTTPConnection(scope)
        level = level_of(request)
        who = (_network(request.client.host if request.client else None), level)
        if scope["method"] == "POST" and scope["path"].endswith("/login"):
            return self.failures.take(who[0])
        guesses = bool(self.settings.tokens) and "authorization" in request.headers
        if guesses and who not in self.known:
            take = self.failures.take if level == 0 else self.failures.wait
            wait = take(who[0])
            if wait:
                return wait
            if level:
                self.known[who] = None
                if len(self.known) > _MOST_CLIENTS:
                    self.known.popitem(last=False)
        return self.requests.take(who)


def _network(host: str | None) -> str:
    """What counts as one address: of IPv6 a /64, which one customer has whole.

    >>> _network("2001:db8::1:2:3:4"), _network("192.0.2.1"), _network("testclient")
    ('2001:db8::', '192.0.2.1', 'testclient')
    """
    try:
        address = ipaddress.ip_address(host or "")
    except ValueError:
        return host or ""
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped:
            return str(address.ipv4_mapped)
        return str(ipaddress.IPv6Network((address.packed[:8] + bytes(8), 64)).network_address)
    return str(address)
