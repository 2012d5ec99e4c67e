"""Events of a study that the database alone knows: trials that have finished, read once a second for all who watch."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import asdict

from starlette.concurrency import run_in_threadpool

from sparsearch.documents import plain
from sparsearch.errors import NotFoundError, StoreError
from sparsearch.results.answers import FinishedTrial
from sparsearch.results.records import NOT_RUN
from sparsearch.results.store.store import Store
from sparsearch.service.limits.streams import event_text

__all__ = ["StudyWatches", "study_events", "told_by"]

_LOOK_SECONDS, _SILENT_SECONDS = 1.0, 15.0
_ID = re.compile(r"t(\d{1,9}(-\d{1,9})?(\.\d{1,9}(-\d{1,9})?)*)?")
_MOST_NUMBERS = 1_000_000


def told_by(event_id: str) -> set[int] | None:
    """The numbers of the trials that a client with this id was told; None if it is no such id.

    An id says which trials were told, since trials do not finish in the order of their numbers, nor clocks agree.

    >>> told_by("t0-2.5"), told_by("t"), told_by("7")
    ({0, 1, 2, 5}, set(), None)
    """
    if not _ID.fullmatch(event_id):
        return None
    told: set[int] = set()
    for piece in filter(None, event_id[1:].split(".")):
        first, _, last = piece.partition("-")
        numbers = range(int(first), int(last or first) + 1)
        if len(told) + len(numbers) > _MOST_NUMBERS:
            return None
        told.update(numbers)
    return told


class _Told:
    """Numbers of trials, as ranges too, which an id lists."""

    def __init__(self, numbers: set[int]) -> None:
        self.numbers = numbers
        self._ranges: list[list[int]] = []
        for number in sorted(numbers):
            self._append(number)

    def add(self, number: int) -> None:
        self.numbers.add(number)
        if self._ranges and number < self._ranges[-1][1]:
            self._ranges = []
            for known in sorted(self.numbers):
                self._append(known)
        else:
            self._append(number)

    def _append(self, number: int) -> None:
        if self._ranges and number == self._ranges[-1][1] + 1:
            self._ranges[-1][1] = number
        else:
            self._ranges.append([number, number])

    @property
    def id(self) -> str:
        return "t" + ".".join(f"{a}-{b}" if a < b else str(a) for a, b in self._ranges)


class _Watch:
    """A study that somebody watches: its finished trials in the order in which they were seen.

    A trial that a race left out is seen again if it runs after all.
    """

    def __init__(self, store: Store, study: str) -> None:
        self.store, self.study = store, study
        self.arrived: list[FinishedTrial] = []
        self.running = True
        self.streams = 0
        self._states: dict[int, str] = {}
        self._above = -1
        self._id: int | None = None
        self._looked_at = -_LOOK_SECONDS
        self._looking = asyncio.Lock()

    async def look(self) -> None:
        """Read what is new, unless that was done within the last second.

        Raises:
            StoreError: If the study is gone, or the database fails.
        """
        async with self._looking:
            if time.monotonic() - self._looked_at < _LOOK_SECONDS:
                return
            found = await run_in_threadpool(self.store.progress, self.study, self._above)
            if self._id not in (None, found.id):
                raise NotFoundError(
                    f"study {self.study!r} was deleted", "there is another one now"
                )
            self._id, self.running = found.id, found.running
            new = [t for t in found.finished if self._states.get(t.number) != t.state]
            self.arrived += new
            self._states |= {trial.number: trial.state for trial in new}
            while self._states.get(self._above + 1, NOT_RUN[0]) not in NOT_RUN:
                self._above += 1  # what lies behind is not read again
            self._looked_at = time.monotonic()


class StudyWatches:
    """The studies that streams watch: one question a second for each, however many streams.

    Args:
        store: Where they are.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        self._watches: dict[str, _Watch] = {}

    @contextmanager
    def watching(self, study: str) -> Iterator[_Watch]:
        """The watch of a study, as long as somebody needs it."""
        watch = self._watches.setdefault(study, _Watch(self.store, study))
        watch.streams += 1
        try:
            yield watch
        finally:
            watch.streams -= 1
            if not watch.streams:
                del self._watches[study]


async def study_events(watches: StudyWatches, study: str, numbers: set[int]) -> AsyncIterator[str]:
    """Trials as they finish, but those that the client was told, until nobody runs the study.

    No id lists trials that a race left out, so that a client hears of them again, and of what became of them.
    """
    told, seen, silent = _Told(numbers), 0, 0.0
    with watches.watching(study) as watch:
        while True:
            try:
                await watch.look()
            except StoreError:
                return  # the client comes back, and hears why
            over, arrived, seen = not watch.running, watch.arrived[seen:], len(watch.arrived)
            new = [trial for trial in arrived if trial.number not in told.numbers]
            for trial in new:
                if trial.state not in NOT_RUN:
                    told.add(trial.number)
                facts = asdict(trial)
                event = {
                    "at": facts.pop("finished_at"),
                    "event": "finished",
                    "trial": trial.number,
                }
                del facts["number"]
                yield event_text(told.id, "finished", plain(event | facts))
            if over:
                record = await run_in_threadpool(watches.store.find_study, study)
                yield event_text(told.id, "idle", plain(record.as_dict()))
                return
            silent = 0.0 if new else silent + _LOOK_SECONDS
            if silent >= _SILENT_SECONDS:
                silent = 0.0
                yield ": still here\n\n"
            await asyncio.sleep(_LOOK_SECONDS)
