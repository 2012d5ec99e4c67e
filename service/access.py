"""Who may ask: the host names one calls it by, and tokens."""

from __future__ import annotations

import hashlib
import hmac
import re
from typing import Annotated

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from sparsearch.service.problems import Problem, body
from sparsearch.service.settings import READ_TOKEN, ServiceSettings, is_loopback

__all__ = ["HostCheck", "host_name", "level_of", "may_read", "may_run"]

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
            if origin and scope["method"] not in ("GET", "HEAD", "OPTIONS"):
                theirs = _without_usual_port(origin.partition("://")[2])
                if theirs != _without_usual_port(headers.get("host", "")):
                    problem = Problem(f"a page of {origin!r} may not change anything here")
                    await JSONResponse(body(problem), 403)(scope, receive, send)
                    return
        await self.app(scope, receive, send)


def _level(request: Request) -> int:
    client = request.client.host if request.client else None
    return level_of(request.app.state.settings, client, request.headers)


_bearer = HTTPBearer(
    auto_error=False, description="The token for reading, or the one for running."
)
Credentials = Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]
"""For the API's document, which says by it how a token is sent."""


def _equal(given: str, token: str | None) -> bool:
    """Whether a token was given, in a time that does not depend on where two differ, nor on their lengths."""
    ours = hashlib.sha256((token or "").encode()).digest()
    same = hmac.compare_digest(hashlib.sha256(given.encode()).digest(), ours)
    return same and token is not None


def level_of(settings: ServiceSettings, client: str | None, headers: Headers) -> int:
    """What a request may do: 0 nothing, 1 read, 2 run too.

    Args:
        settings: With the tokens.
        client: Its address; None where there is none.
        headers: Its headers.
    """
    if not settings.tokens:
        near = client is None or is_loopback(client)
        return 2 if near and not any(name in headers for name in _FORWARDED) else 0
    scheme, _, given = headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer":
        return 0
    reads, runs = _equal(given, settings.read_token), _equal(given, settings.run_token)
    return 2 if runs else int(reads)


def may_read(request: Request, credentials: Credentials) -> None:
    """Refuse who has no token.

    Raises:
        Problem: 401.
    """
    if _level(request) < 1:
        raise Problem(
            "this needs a token",
            f"send `Authorization: Bearer TOKEN`; the operator sets it with {READ_TOKEN}",
            status=401,
        )


def may_run(request: Request, credentials: Credentials) -> None:
    """Refuse who has no token for running.

    Raises:
        Problem: 401, or 403 for who may read alone.
    """
    may_read(request, credentials)
    if _level(request) < 2:
        raise Problem("this token lets one read, not run", "use the other token", status=403)
