"""Who may ask: the host names one calls it by, and tokens."""

from __future__ import annotations

import hashlib
import hmac
import re
import time
from typing import Annotated

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from starlette.datastructures import Headers
from starlette.requests import HTTPConnection
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from sparsearch.service.problems import Problem, body
from sparsearch.service.settings import READ_TOKEN, ServiceSettings, is_loopback

__all__ = [
    "ANYTHING",
    "COOKIE",
    "SESSION_SECONDS",
    "HostCheck",
    "host_name",
    "level_of",
    "may_read",
    "may_run",
    "session_of",
]

NOTHING, READING, ANYTHING = range(3)
"""What one may do."""

COOKIE = "sparsearch"
"""Holds the session of a browser that has logged in."""

SESSION_SECONDS = 12 * 3600

_SAFE = ("GET", "HEAD", "OPTIONS")
_FORWARDED = ("forwarded", "x-forwarded-for", "x-real-ip")


def host_name(header: str) -> str:
    """The name in a Host header, without its port, in lower case.

    >>> host_name("Search.Example.org:8642"), host_name("[::1]:8642"), host_name("[::1]")
    ('search.example.org', '::1', '::1')
    """
    header = header.strip().lower()
    if header.startswith("["):
        return header[1:].partition("]")[0]
    return header.partition(":")[0] if header.count(":") == 1 else header


def _without_usual_port(authority: str) -> str:
    """Host and port of a page, which leave the ports 80 and 443 out."""
    return re.sub(r":(80|443)$", "", authority.strip().lower())


class HostCheck:
    """Refuses a request for another host: a page elsewhere could have its name point here.

    A request that changes something must also come from a page of this host and port, or from no page.
    """

    def __init__(self, app: ASGIApp, settings: ServiceSettings) -> None:
        self.app, self.settings = app, settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or hand on."""
        if scope["type"] == "http":
            headers = Headers(scope=scope)
            name = host_name(headers.get("host", ""))
            if name not in self.settings.allowed_hosts:
                problem = Problem(
                    f"this service does not answer to the host name {name!r}",
                    f"its operator lets it with `sparsearch serve --allow-host {name or 'NAME'}`",
                )
                await JSONResponse(body(problem), 400)(scope, receive, send)
                return
            origin = headers.get("origin")
            if origin and scope["method"] not in _SAFE:
                theirs = _without_usual_port(origin.partition("://")[2])
                if theirs != _without_usual_port(headers.get("host", "")):
                    problem = Problem(f"a page of {origin!r} may not change anything here")
                    await JSONResponse(body(problem), 403)(scope, receive, send)
                    return
        await self.app(scope, receive, send)


_bearer = HTTPBearer(
    auto_error=False, description="The token for reading, or the one for running."
)
Documented = Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]
"""Only for the API's document: ``level_of`` reads the header itself, for pages too."""


def _equal(given: str, token: str | None) -> bool:
    """Whether a token was given, in a time that does not depend on where two differ, nor on their lengths."""
    ours = hashlib.sha256((token or "").encode()).digest()
    same = hmac.compare_digest(hashlib.sha256(given.encode()).digest(), ours)
    return same and token is not None


def _token_level(settings: ServiceSettings, token: str) -> int:
    reads, runs = _equal(token, settings.read_token), _equal(token, settings.run_token)
    return ANYTHING if runs else READING if reads else NOTHING


def _signed(token: str, until: int) -> str:
    """A session that ends at a time; who has it does not have the token."""
    seal = hmac.new(token.encode(), f"session until {until}".encode(), hashlib.sha256).hexdigest()
    return f"{until}.{seal}"


def session_of(settings: ServiceSettings, token: str) -> str | None:
    """What the cookie of a browser holds that has logged in with a token; None if it is no token.

    Changing the token ends its sessions.
    """
    if _token_level(settings, token) == NOTHING:
        return None
    return _signed(token, int(time.time()) + SESSION_SECONDS)


def _session_level(settings: ServiceSettings, session: str) -> int:
    until = session.partition(".")[0]
    if not (until.isascii() and until.isdecimal() and len(until) < 15) or int(until) < time.time():
        return NOTHING
    levels = ((ANYTHING, settings.run_token), (READING, settings.read_token))
    same = [
        (level, hmac.compare_digest(session.encode(), _signed(token, int(until)).encode()))
        for level, token in levels
        if token is not None
    ]
    return max((level for level, equal in same if equal), default=NOTHING)


def level_of(request: HTTPConnection) -> int:
    """What the sender of a request may do: ``NOTHING``, ``READING`` or ``ANYTHING``.

    A browser is known by its cookie; what changes something must then say which page it comes from, as browsers do.
    """
    settings: ServiceSettings = request.app.state.settings
    headers = request.headers
    if not settings.tokens:
        near = request.client is None or is_loopback(request.client.host)
        return ANYTHING if near and not any(name in headers for name in _FORWARDED) else NOTHING
    scheme, _, token = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return _token_level(settings, token.strip())
    level = _session_level(settings, request.cookies.get(COOKIE, ""))
    safe = request.scope.get("method") in _SAFE or "origin" in headers  # which HostCheck holds to
    return level if safe else min(level, READING)


def may_read(request: Request, _: Documented) -> None:
    """Refuse who has no token.

    Raises:
        Problem: 401.
    """
    if level_of(request) < READING:
        raise Problem(
            "this needs a token",
            f"send `Authorization: Bearer TOKEN`; the operator sets it with {READ_TOKEN}",
            status=401,
        )


def may_run(request: Request, documented: Documented) -> None:
    """Refuse who has no token for running.

    Raises:
        Problem: 401, or 403 for who may read alone.
    """
    may_read(request, documented)
    if level_of(request) < ANYTHING:
        raise Problem("this token lets one read, not run", "use the other token", status=403)
