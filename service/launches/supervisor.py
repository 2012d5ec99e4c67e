"""Starts the drivers of launched studies, a bounded number at a time, each in a process of its own."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
from pathlib import Path

from sparsearch.errors import NotFoundError, StoreError
from sparsearch.results.store.store import Store
from sparsearch.service.launches.folder import End, Launch, launches
from sparsearch.service.settings import READ_TOKEN, RUN_TOKEN, WEBHOOK_SECRET, WEBHOOKS

__all__ = ["Supervisor"]

_TICK_SECONDS = 1.0
_MOST_STARTS = 5
_SECRETS = (READ_TOKEN, RUN_TOKEN, WEBHOOK_SECRET, WEBHOOKS)


class Supervisor:
    """Looks at the launches every second: queued ones start, killed ones start again, stopped ones end.

    Drivers are processes in sessions of their own, which outlive the server. All that it knows is in the folders:
    another supervisor goes on where this one was killed.

    Args:
        root: Folder of the launches.
        db: The database.
        most: Drivers at a time.
    """

    def __init__(self, root: Path, db: str, most: int) -> None:
        self.root, self.db, self.most = root, db, most
        self._children: dict[Path, subprocess.Popen[bytes]] = {}
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
        self._thread.join()

    def _loop(self) -> None:
        while not self._over.is_set():
            try:
                self.look()
            except Exception:  # noqa: BLE001 - a full disk now is no reason never to look again
                logging.getLogger(__name__).exception("the supervisor could not look")
            self._over.wait(_TICK_SECONDS)

    def look(self) -> None:
        """Start what may start, and hand requests to stop on."""
        for folder, child in list(self._children.items()):
            if child.poll() is not None:
                del self._children[folder]
        found = launches(self.root)
        running = [launch for launch in found if self._runs(launch)]
        for launch in running:
            if launch.stop_asked:
                self._hand_on_stop(launch)
        free = self.most - len(running)
        for launch in found:
            if self._runs(launch) or launch.state != "queued":
                continue
            if launch.starts >= _MOST_STARTS:
                said = f"its driver was killed {launch.starts} times"
                launch.finish(End(1, said, "look at the log, then continue it"))
                launch.tell("ended", code=1, message=said, hint="")
            elif free > 0:
                self._start(launch)
                free -= 1

    def _runs(self, launch: Launch) -> bool:
        """Whether its driver lives; a child takes seconds until it holds the lock."""
        return launch.folder in self._children or launch.is_running

    def _start(self, launch: Launch) -> None:
        launch.count_start()
        command = [sys.executable, "-m", "sparsearch.service.launches.driver", str(launch.folder)]
        with launch.log.open("ab") as log:
            self._children[launch.folder] = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=launch.folder,
                env=_environment() | {"SPARSEARCH_DB": self.db},  # not for the process list
                start_new_session=True,
            )

    def _hand_on_stop(self, launch: Launch) -> None:
        """Ask the driver through the database; one that still loads is asked again at the next look."""
        try:
            with Store.open(self.db, create=True) as store:
                if not store.stop_asked(launch.name):
                    store.ask_to_stop(launch.name)
        except NotFoundError:
            return  # it has not begun its study
        except StoreError as error:
            logging.getLogger(__name__).warning("cannot stop %s yet: %s", launch.name, error)


def _environment() -> dict[str, str]:
    """This process's own, without the secrets of the service."""
    return {name: value for name, value in os.environ.items() if not name.startswith(_SECRETS)}
