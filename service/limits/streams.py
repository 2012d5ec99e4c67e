"""Event streams, of which a bounded number is open at a time."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from sparsearch.service.problems import Problem

__all__ = ["EventStream", "OpenStreams", "event_text"]

_RETRY_SECONDS = 10


def event_text(id: int | str, event: str, data: Any) -> str:
    """A server-sent event."""
    return f"id: {id}\nevent: {event}\ndata: {json.dumps(data)}\n\n"


class OpenStreams:
    """How many event streams are open.

    Args:
        most: So many may be.
    """

    def __init__(self, most: int) -> None:
        self.most, self.open = most, 0


class EventStream(StreamingResponse):
    """Server-sent events; it counts as open from its first byte to its end, whoever ends it.

    Args:
        events: As text.
        streams: Those that are open.
    """

    media_type = "text/event-stream"

    def __init__(self, events: AsyncIterator[str], streams: OpenStreams) -> None:
        super().__init__(events)
        self.streams = streams

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Stream.

        Raises:
            Problem: 503, if too many are open.
        """
        if self.streams.open >= self.streams.most:
            said = f"{self.streams.open} event streams are open, more than that are not served"
            raise Problem(said, "ask again later", status=503, retry_after=_RETRY_SECONDS)
        self.streams.open += 1
        try:
            await super().__call__(scope, receive, send)
        finally:
            self.streams.open -= 1
