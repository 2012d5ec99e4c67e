"""Where drivers run: what starts them, and knows those that are starting; as processes beside the server."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Protocol

from sparsearch.service.launches.folder import Launch
from sparsearch.service.settings import READ_TOKEN, RUN_TOKEN, WEBHOOK_SECRET, WEBHOOKS

__all__ = ["DriverRunner", "LocalProcesses", "driver_environment"]

_SECRETS = (READ_TOKEN, RUN_TOKEN, WEBHOOK_SECRET, WEBHOOKS)


class DriverRunner(Protocol):
    """Starts drivers; once one holds its launch's lock, the lock says that it lives.

    Both methods raise WorkersError where nothing can be started or known now, which may pass.
    """

    def start(self, launch: Launch) -> None:
        """Start the next driver of a launch; to do so twice before the start is counted starts one."""

    def is_starting(self, launch: Launch) -> bool:
        """Whether the driver that was started last lives, though it may not hold the lock: that takes seconds."""


def driver_environment(db: str) -> dict[str, str]:
    """The environment of a driver: this process's own and the database, without the secrets of the service.

    A driver runs in another folder: what ``PYTHONPATH`` names from here is named in full.
    """
    ours = {name: value for name, value in os.environ.items() if not name.startswith(_SECRETS)}
    if path := ours.get("PYTHONPATH"):
        ours["PYTHONPATH"] = os.pathsep.join(map(os.path.abspath, path.split(os.pathsep)))
    return ours | {"SPARSEARCH_DB": db}


class LocalProcesses:
    """Drivers are processes in sessions of their own, which outlive the server.

    Args:
        db: The database; it reaches drivers by their environment, which no list of processes shows.
    """

    def __init__(self, db: str) -> None:
        self.db = db
        self._children: dict[Path, subprocess.Popen[bytes]] = {}

    def start(self, launch: Launch) -> None:
        """Start a process."""
        command = [sys.executable, "-m", "sparsearch.service.launches.driver", str(launch.folder)]
        with launch.log.open("ab") as log:
            self._children[launch.folder] = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=launch.folder,
                env=driver_environment(self.db),
                start_new_session=True,
            )

    def is_starting(self, launch: Launch) -> bool:
        """Whether its process lives."""
        for folder, child in list(self._children.items()):
            if child.poll() is not None:
                del self._children[folder]
        return launch.folder in self._children
