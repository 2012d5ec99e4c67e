"""Starts the drivers of launched studies, a bounded number at a time."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from pathlib import Path

from sparsearch.errors import NotFoundError, StoreError, WorkersError
from sparsearch.results.store.store import Store
from sparsearch.service.launches.driver_runner import DriverRunner
from sparsearch.service.launches.folder import End, Launch, launches

__all__ = ["Supervisor"]

_logger = logging.getLogger(__name__)

_TICK_SECONDS, _JOIN_SECONDS = 1.0, 5.0
_MOST_STARTS = 5


class Supervisor:
    """Looks at the launches every second: queued ones start, killed ones start again, stopped ones end.

    All that it knows is in the folders: another supervisor goes on where this one was killed.

    Args:
        root: Folder of the launches.
        db: The database.
        most: Drivers at a time.
        runner: Where they run.
    """

    def __init__(self, root: Path, db: str, most: int, runner: DriverRunner) -> None:
        self.root, self.db, self.most, self.runner = root, db, most, runner
        self._complained = False
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="supervisor", daemon=True)

    def __enter__(self) -> Supervisor:
        """Begin to look."""
        self.root.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._thread.start()
        return self

    def __exit__(self, *raised: object) -> None:
        """Look no more; drivers go on."""
        self._over.set()
        self._thread.join(_JOIN_SECONDS)  # Ray's client waits for ever for a head that hangs

    def _loop(self) -> None:
        while not self._over.is_set():
            try:
                self.look()
            except Exception:  # noqa: BLE001 - a full disk now is no reason never to look again
                _logger.exception("the supervisor could not look")
            self._over.wait(_TICK_SECONDS)

    def look(self) -> None:
        """Start what may start, and hand requests to stop on."""
        found = launches(self.root)
        for launch in found:
            if launch.stop_asked and launch.is_running:
                self._hand_on_stop(launch)
        try:
            self._start_queued(found)
        except WorkersError as error:
            if not self._complained:
                _logger.warning("%s", error)
            self._complained = True
        else:
            if self._complained:
                _logger.warning("drivers can be started again")
            self._complained = False

    def _start_queued(self, found: Sequence[Launch]) -> None:
        """Start queued launches, as many as may run; give those up whose drivers were killed too often."""
        states = [launch.state for launch in found]
        queued = [launch for launch, state in zip(found, states, strict=True) if state == "queued"]
        waiting = [launch for launch in queued if not self.runner.is_starting(launch)]
        free = self.most - states.count("running") - (len(queued) - len(waiting))
        for launch in waiting:
            if launch.state != "queued":  # its driver began, or has ended, meanwhile
                continue
            if launch.starts >= _MOST_STARTS:
                said = f"its driver was killed {launch.starts} times"
                launch.finish(End(1, said, "look at the log, then continue it"))
                launch.tell("ended", code=1, message=said, hint="")
            elif free > 0:
                self.runner.start(launch)
                launch.count_start()
                free -= 1

    def _hand_on_stop(self, launch: Launch) -> None:
        """Ask the driver through the database; one that still loads is asked again at the next look."""
        try:
            with Store.open(self.db, create=True) as store:
                if not store.stop_asked(launch.name):
                    store.ask_to_stop(launch.name)
        except NotFoundError:
            return  # it has not begun its study
        except StoreError as error:
            _logger.warning("cannot stop %s yet: %s", launch.name, error)
