"""The lease: one driver at a time works on a study."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from sparsearch.errors import LeaseError
from sparsearch.results.store.tables import StudyRow

__all__ = [
    "LEASE_SECONDS",
    "Claim",
    "Owner",
    "acquire",
    "check",
    "clear",
    "holder",
    "release",
    "renew",
]

LEASE_SECONDS = 600.0

_CLOCK_TOLERANCE = 2.0
"""Seconds by which the time that a process was created may differ when it is read twice."""


@dataclass(frozen=True)
class Owner:
    """A process that may hold a lease.

    Attributes:
        host: Name of the machine.
        pid: Process id.
        started: When the process was created, see ``_started``; pids are reused, this is not.
    """

    host: str
    pid: int
    started: float

    def __str__(self) -> str:
        """Host and process id, as messages show them."""
        return f"{self.host}:{self.pid}"

    @classmethod
    def current(cls) -> Owner:
        """This process."""
        pid = os.getpid()
        return cls(socket.gethostname(), pid, _started(pid))

    def is_dead(self) -> bool:
        """Whether the process is known to be gone; False for one on another machine."""
        if self.host != socket.gethostname():
            return False
        try:
            process = psutil.Process(self.pid)
            # A killed driver whose parent does not collect it stays as a zombie.
            if process.status() == psutil.STATUS_ZOMBIE:
                return True
            return abs(_started(self.pid) - self.started) > _CLOCK_TOLERANCE
        except (psutil.NoSuchProcess, FileNotFoundError, ProcessLookupError):
            return True
        except psutil.AccessDenied:
            return False


class Claim(NamedTuple):
    """A study and the process that says it holds its lease; whoever writes to trials shows it."""

    study: str
    owner: Owner


def _started(pid: int) -> float:
    """When a process was created: seconds since the machine's start, where /proc tells, else since 1970.

    What follows the wall clock jumps with it, and a live driver would be taken for dead.
    """
    stat = Path(f"/proc/{pid}/stat")
    if not stat.parent.parent.joinpath("stat").exists():
        return psutil.Process(pid).create_time()
    after_name = stat.read_text().rpartition(")")[2].split()
    return int(after_name[19]) / os.sysconf("SC_CLK_TCK")


def _owner(study: Any) -> Owner | None:
    """Who is written on the study's row, or on what was selected of it."""
    if study.owner_host is None or study.owner_pid is None or study.owner_started is None:
        return None
    return Owner(study.owner_host, study.owner_pid, study.owner_started)


def holder(study: StudyRow) -> Owner | None:
    """Who holds the study now; None where its lease is free, over, or its owner is dead.

    A process on this machine holds it as long as it lives, however long it measures or loads.
    """
    owner = _owner(study)
    if owner is None or study.lease_until is None or owner.is_dead():
        return None
    if owner.host != socket.gethostname() and study.lease_until <= datetime.now(UTC):
        return None
    return owner


def acquire(study: StudyRow, owner: Owner, seconds: float) -> None:
    """Take the lease of a study whose row is locked.

    Raises:
        LeaseError: If another live driver holds it.
    """
    other = holder(study)
    if other is not None and other != owner and study.lease_until is not None:
        until = study.lease_until.isoformat(timespec="seconds")
        elsewhere = other.host != socket.gethostname()  # here it has no end but the process's
        raise LeaseError(
            f"study {study.name!r} is being run by {other}"
            + (f", whose lease ends at {until} unless it is renewed" if elsewhere else ""),
            f"wait for it, or end it: sparsearch stop {study.name}",
        )
    study.owner_host, study.owner_pid, study.owner_started = owner.host, owner.pid, owner.started
    study.lease_until = datetime.now(UTC) + timedelta(seconds=seconds)


def renew(study: StudyRow, owner: Owner, seconds: float) -> None:
    """Extend the lease of a study whose row is locked.

    Raises:
        LeaseError: If it was lost to another driver, or is not held.
    """
    if _owner(study) != owner:
        raise _lost(study.name, _owner(study))
    study.lease_until = datetime.now(UTC) + timedelta(seconds=seconds)


def check(name: str, study: Any, owner: Owner) -> None:
    """Whoever writes to a study's trials holds it, or nobody does.

    Raises:
        LeaseError: If another driver took it over.
    """
    holding = _owner(study)
    if holding is not None and holding != owner:
        raise _lost(name, holding)


def _lost(name: str, holding: Owner | None) -> LeaseError:
    return LeaseError(
        f"the lease of study {name!r} is lost, held by {holding or 'nobody'}",
        "type the same command again: the study continues where it was",
    )


def release(study: StudyRow, owner: Owner) -> bool:
    """Give the lease back; False, and nothing happens, if it is another's by now."""
    if _owner(study) != owner:
        return False
    clear(study)
    return True


def clear(study: StudyRow) -> None:
    """Nobody holds the study."""
    study.owner_host = study.owner_pid = study.owner_started = study.lease_until = None
