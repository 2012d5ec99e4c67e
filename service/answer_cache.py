"""One answer for all who ask the same within a moment: many may watch a study that uses the processor itself."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sparsearch.service.access import READING, level_of

__all__ = ["AnswerCache"]

_SECONDS, _COST_FACTOR, _LONGEST = 1.0, 50.0, 10.0
"""An answer is kept for a second, one that took long for fifty times as long, and none for more than ten seconds."""
_MOST, _MOST_BYTES, _LARGEST, _WORTH_PACKING = 1_000, 64_000_000, 4_000_000, 1_000
_NEVER = ("/events", "/export", "/report", "/health", "/metrics")
"""Ends of paths: streams, files that are made, and what is asked in order to see the present."""

Key: TypeAlias = tuple[str, bytes, int, str, bool]


@dataclass(frozen=True)
class _Answer:
    status: int
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes
    route: Any
    until: float

    @property
    def etag(self) -> str:
        return f'W/"{hashlib.sha256(self.body).hexdigest()[:24]}"'


class AnswerCache:
    """Keeps answers to GET requests of those who may read, by path, question, and what they may do.

    Who asks while an answer is made waits for that one. Whatever changes something empties it.

    Args:
        app: The application.
        clock: Seconds.
    """

    def __init__(self, app: ASGIApp, clock: Callable[[], float] = time.monotonic) -> None:
        self.app, self.clock = app, clock
        self._kept: OrderedDict[Key, _Answer] = OrderedDict()
        self._bytes = 0
        self._making: dict[Key, asyncio.Task[_Answer]] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or hand on."""
        if scope["type"] != "http" or scope["method"] in ("HEAD", "OPTIONS"):
            await self.app(scope, receive, send)
            return
        if scope["method"] != "GET":
            try:
                await self.app(scope, receive, send)
            finally:
                self._forget()
            return
        path, level = scope["path"], level_of(HTTPConnection(scope))
        if level < READING or "/static/" in path or path.endswith(_NEVER):
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        packed = "gzip" in headers.get("accept-encoding", "")
        key = (path, scope["query_string"], level, headers.get("accept", ""), packed)
        answer = self._kept.get(key)
        if answer is None or answer.until < self.clock():
            answer = await self._made(key, scope)
        scope["route"] = answer.route
        await _send(answer, headers.get("if-none-match"), send)

    async def _made(self, key: Key, scope: Scope) -> _Answer:
        """The answer that is being made, or a new one."""
        task = self._making.get(key)
        if task is None:
            task = self._making[key] = asyncio.create_task(self._make(key, dict(scope)))
            task.add_done_callback(lambda done: self._made_in(key, done))
        return await asyncio.shield(task)  # others wait for it, though this client may leave

    def _made_in(self, key: Key, task: asyncio.Task[_Answer]) -> None:
        if self._making.get(key) is task:
            del self._making[key]

    async def _make(self, key: Key, scope: Scope) -> _Answer:
        began = self.clock()
        start: Message = {}
        body = bytearray()

        async def receive() -> Message:
            return await asyncio.Future()  # there is no body, and who asks does not leave

        async def send(message: Message) -> None:
            if message["type"] == "http.response.start":
                start.update(message)
            else:
                body.extend(message.get("body", b""))

        await self.app(scope, receive, send)
        headers = MutableHeaders(raw=list(start["headers"]))
        headers.setdefault("cache-control", "private, no-cache")
        headers.add_vary_header("accept-encoding")
        if key[-1] and len(body) > _WORTH_PACKING and "content-encoding" not in headers:
            body[:] = gzip.compress(bytes(body), 5, mtime=0)
            headers["content-encoding"] = "gzip"
        headers["content-length"] = str(len(body))
        cost = self.clock() - began
        until = began + cost + min(_LONGEST, max(_SECONDS, _COST_FACTOR * cost))
        raw = tuple(headers.raw)
        answer = _Answer(start["status"], raw, bytes(body), scope.get("route"), until)
        fresh = self._making.get(key) is asyncio.current_task()
        if answer.status == 200 and len(body) <= _LARGEST and fresh:
            self._keep(key, answer)
        return answer

    def _keep(self, key: Key, answer: _Answer) -> None:
        self._drop(key)
        self._kept[key] = answer
        self._bytes += len(answer.body)
        while self._bytes > _MOST_BYTES or len(self._kept) > _MOST:
            self._drop(next(iter(self._kept)))

    def _drop(self, key: Key) -> None:
        old = self._kept.pop(key, None)
        self._bytes -= 0 if old is None else len(old.body)

    def _forget(self) -> None:
        """Nothing that was made, or is being made, from what was there before."""
        self._kept.clear()
        self._bytes = 0
        self._making.clear()


async def _send(answer: _Answer, known: str | None, send: Send) -> None:
    """Send an answer, or say that the client has it."""
    headers = MutableHeaders(raw=list(answer.headers))
    if answer.status == 200:
        headers["etag"] = answer.etag
        if known is not None and answer.etag in known:
            for name in ("content-length", "content-type", "content-encoding"):
                del headers[name]
            await send({"type": "http.response.start", "status": 304, "headers": headers.raw})
            await send({"type": "http.response.body", "body": b""})
            return
    await send({"type": "http.response.start", "status": answer.status, "headers": headers.raw})
    await send({"type": "http.response.body", "body": answer.body})
