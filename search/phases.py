"""Where the time goes: phases, timed where they happen."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

__all__ = ["PHASES", "phase", "timed"]

PHASES = ("loading", "waiting", "warm start", "ranking", "training", "evaluation", "storing")
"""In the order of reports; what is in no phase is their ``other``."""


class _Watch:
    """Seconds by phase; a phase within another one takes its time from it."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._phases: list[str] = []
        self._since = time.perf_counter()

    def enter(self, name: str) -> None:
        self._note()
        self._phases.append(name)

    def leave(self) -> None:
        self._note()
        self._phases.pop()

    def _note(self) -> None:
        now = time.perf_counter()
        if self._phases:
            name = self._phases[-1]
            self.seconds[name] = self.seconds.get(name, 0.0) + now - self._since
        self._since = now


_WATCH: ContextVar[_Watch | None] = ContextVar("watch", default=None)


@contextmanager
def timed() -> Iterator[dict[str, float]]:
    """Time the phases that happen within; one ``timed`` within another keeps its seconds to itself.

    Yields:
        Seconds by phase, filled as phases end.

    Example:
        >>> with timed() as seconds:
        ...     with phase("training"), phase("evaluation"):
        ...         pass
        >>> sorted(seconds)
        ['evaluation', 'training']
    """
    watch = _Watch()
    token = _WATCH.set(watch)
    try:
        yield watch.seconds
    finally:
        _WATCH.reset(token)


@contextmanager
def phase(name: str) -> Iterator[None]:
    """What happens within belongs to a phase, if anybody times it: some microseconds each."""
    watch = _WATCH.get()
    if watch is None:
        yield
        return
    watch.enter(name)
    try:
        yield
    finally:
        watch.leave()
