"""The exchange: where a driver and its workers leave messages for each other.

It runs as an actor of its own, beside the driver. Messages are sealed, so that it needs to import neither
torch nor anything heavy of sparsearch; what it must know of a message stands beside it.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from sparsearch.workers.execution.news import (
    DataLoaded,
    JobKey,
    JobLost,
    JobTold,
    News,
    RankingAsked,
    WorkerBroken,
    WorkerDied,
    WorkerReady,
    WorkerSilent,
)

__all__ = ["MessageBroker"]

_MOST_SHARED = 8


class MessageBroker:
    """Jobs wait here for a worker, and what workers have to say for the driver.

    A slot is the place of one worker at a time; after its death another one takes the place.

    Args:
        patience: Seconds without a word after which a worker with a job counts as silent.
    """

    def __init__(self, patience: float) -> None:
        self._patience = patience
        self._changed = asyncio.Condition()
        self._open = True
        self._jobs: deque[tuple[JobKey, bytes]] = deque()
        self._held: dict[str, JobKey] = {}
        self._heard: dict[str, float] = {}
        self._takers: dict[str, object] = {}
        self._cancelled: set[JobKey] = set()
        self._news: list[News] = []
        self._told = self._seen = 0
        self._asked = 0
        self._answers: dict[int, bytes] = {}
        self._shared: dict[str, bytes] = {}
        self._makers: dict[str, str] = {}

    # For the driver

    async def put(self, key: JobKey, job: bytes) -> None:
        """A job for the next free worker."""
        async with self._changing():
            self._jobs.append((key, job))

    async def cancel(self, key: JobKey) -> None:
        """The worker that has the job hears of it with its next message."""
        self._cancelled.add(key)

    async def answer(self, number: int, ranking: bytes) -> None:
        """What a worker asked for."""
        async with self._changing():
            self._answers[number] = ranking

    async def lost(self, slot: str, reason: str) -> None:
        """A worker is gone, and its job with it."""
        async with self._changing():
            self._takers.pop(slot, None)
            self._heard.pop(slot, None)
            self._makers = {k: s for k, s in self._makers.items() if s != slot}
            self._news.append(WorkerDied(slot, reason))
            if (key := self._held.pop(slot, None)) is not None:
                self._news.append(JobLost(key, reason))

    async def news(self, seconds: float) -> list[News]:
        """What has happened since the last time; waits some seconds for it.

        Asking again says that the last news are dealt with.
        """
        async with self._changing():
            self._seen = self._told
        await self._until(lambda: bool(self._news), seconds)
        for slot, heard in list(self._heard.items()):
            if slot in self._held and time.monotonic() - heard > self._patience:
                del self._heard[slot]
                self._news.append(WorkerSilent(slot))
        news, self._news = self._news, []
        self._told += len(news)
        return news

    async def close(self) -> None:
        """No more jobs; what runs is cancelled."""
        async with self._changing():
            self._open = False

    # For workers

    async def loaded(self, slot: str, data: bytes) -> None:
        """A worker has loaded model and data; ``data`` is a summary of them, sealed."""
        async with self._changing():
            self._news.append(DataLoaded(data))

    async def ready(self, slot: str, handle: object) -> None:
        """A worker would take jobs."""
        async with self._changing():
            self._news.append(WorkerReady(slot, handle))

    async def broken(self, slot: str, error: bytes) -> None:
        """A worker cannot load what it needs."""
        async with self._changing():
            self._news.append(WorkerBroken(slot, error))

    async def take(self, slot: str) -> bytes | None:
        """The next job, None when there will be no more."""
        me = self._takers[slot] = object()  # a dead worker's question waits on

        def over() -> bool:
            return not self._open or self._takers.get(slot) is not me

        while not self._jobs or over():
            if over():
                return None
            await self._until(lambda: bool(self._jobs) or over())
        key, job = self._jobs.popleft()
        self._held[slot], self._heard[slot] = key, time.monotonic()
        return job

    async def tell(
        self, slot: str, key: JobKey, event: bytes, *, last: bool = False, decides: bool = False
    ) -> bool:
        """An event of a job.

        Args:
            slot: The worker's place.
            key: The job.
            event: Sealed.
            last: Whether the job is over.
            decides: Whether the driver may cancel the job for what it is told: waits until it has read it.

        Returns:
            Whether to give the job up.
        """
        mine = self._held.get(slot) == key
        async with self._changing():
            self._heard[slot] = time.monotonic()
            self._news.append(JobTold(key, event))
            if last and mine:
                del self._held[slot]
            number = self._told + len(self._news)
        if decides and mine:
            await self._until(lambda: self._seen >= number or not self._open)
        return not mine or not self._open or key in self._cancelled

    async def ask(self, key: str) -> bytes:
        """The driver's answer to the question for a ranking."""
        async with self._changing():
            self._asked += 1
            number = self._asked
            self._news.append(RankingAsked(number, key))
        await self._until(lambda: number in self._answers)
        return self._answers.pop(number)

    async def claim(self, slot: str, key: str) -> bytes | None:
        """What is shared under a key, as soon as it is made; None for the one who is to make it."""
        self._heard.pop(slot, None)  # who waits for another one is not silent
        await self._until(lambda: key in self._shared or key not in self._makers)
        self._heard[slot] = time.monotonic()
        if key not in self._shared:
            self._makers[key] = slot
        return self._shared.get(key)

    async def share(self, slot: str, key: str, value: bytes | None) -> None:
        """Keep what was claimed, or, with None, let another one make it."""
        async with self._changing():
            if self._makers.get(key) == slot:
                del self._makers[key]
            if value is not None:
                self._shared[key] = value
                for old in list(self._shared)[:-_MOST_SHARED]:
                    del self._shared[old]

    async def _until(self, true: Callable[[], bool], seconds: float | None = None) -> None:
        async with self._changed:
            try:
                await asyncio.wait_for(self._changed.wait_for(true), seconds)
            except TimeoutError:
                return

    @asynccontextmanager
    async def _changing(self) -> AsyncIterator[None]:
        """A change that everybody who waits looks at."""
        async with self._changed:
            yield
            self._changed.notify_all()
