"""Refuses bodies that are too large, also those that do not say so; uploads count their own."""

from __future__ import annotations

import re

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sparsearch.service.problems import Problem, body

__all__ = ["BodyLimit"]

_UPLOAD = re.compile(r"/api/v1/uploads/[^/]+$")


class BodyLimit:
    """Reads the body of a request before the application does, and answers 413 where it is too large.

    Args:
        app: The application.
        most: Bytes.
    """

    def __init__(self, app: ASGIApp, most: int) -> None:
        self.app, self.most = app, most

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or hand on."""
        counts = scope["type"] == "http" and scope["method"] not in ("GET", "HEAD", "OPTIONS")
        if not counts or _UPLOAD.search(scope["path"]):
            await self.app(scope, receive, send)
            return
        pieces, more = bytearray(), not self._says_too_much(scope)
        while more and len(pieces) <= self.most:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            pieces += message.get("body", b"")
            more = message.get("more_body", False)
        if len(pieces) > self.most or self._says_too_much(scope):
            problem = Problem(f"the body has more than {self.most:,} bytes")
            await JSONResponse(body(problem), 413, {"connection": "close"})(scope, receive, send)
            return
        given = False

        async def again() -> Message:
            nonlocal given
            if given:
                return await receive()
            given = True
            return {"type": "http.request", "body": bytes(pieces), "more_body": False}

        await self.app(scope, again, send)

    def _says_too_much(self, scope: Scope) -> bool:
        """Whether the length that a request states is too large; the longest text of a number here has 18 digits."""
        stated = Headers(scope=scope).get("content-length", "")
        return stated.isdecimal() and (len(stated) > 18 or int(stated) > self.most)
