"""A launch as a folder: the study, its log, its events, and how it ended."""

from __future__ import annotations

import codecs
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, TypeAlias

from filelock import FileLock

from sparsearch.errors import LeaseError, NotFoundError
from sparsearch.results.records import StudyRecord
from sparsearch.service.json_lines import append_line, now

__all__ = ["UNTOLD", "End", "Launch", "LaunchState", "find_launch", "launches", "make_launch"]

LaunchState: TypeAlias = Literal["queued", "running", "finished", "failed", "stopped"]

STOPPED = 130
"""Exit code of a driver that was asked to end, as of the command line."""

UNTOLD = "untold"
"""Folder, in a launch's, of the ends that a receiver of webhooks has not been told."""

_MOST_LOG = 65_536


@dataclass(frozen=True)
class End:
    """How a driver ended.

    Attributes:
        code: Exit code, as of ``sparsearch run``.
        message: Why, where it is not 0.
        hint: What to do.
    """

    code: int
    message: str = ""
    hint: str = ""

    @property
    def state(self) -> Literal["finished", "stopped", "failed"]:
        """What it means for the launch."""
        return {0: "finished", STOPPED: "stopped"}.get(self.code, "failed")  # type: ignore[return-value]


@dataclass(frozen=True)
class Launch:
    """One study in its folder; whoever runs it holds the lock, which ends with the process.

    Attributes:
        folder: Of this launch alone.
    """

    folder: Path

    @property
    def exists(self) -> bool:
        """Whether it was asked for; a folder alone is what is left where that could not be written."""
        return (self.folder / "request.json").exists()

    @property
    def request(self) -> dict[str, Any]:
        """What was asked for: ``name``, ``study``, ``queued_at``, and the ``last_event`` before that."""
        found: dict[str, Any] = json.loads((self.folder / "request.json").read_text("utf-8"))
        return found

    @property
    def name(self) -> str:
        """Of the study."""
        return str(self.request["name"])

    @property
    def lock(self) -> FileLock:
        """Held by the driver as long as it lives."""
        return FileLock(self.folder / "lock")

    @property
    def log(self) -> Path:
        """What drivers printed, one after the other."""
        return self.folder / "log"

    @property
    def events(self) -> Path:
        """What drivers told, a JSON object a line."""
        return self.folder / "events.jsonl"

    @property
    def _last_event(self) -> int:
        return int(self.request.get("last_event", 0))

    @property
    def _events_size(self) -> int:
        return self.events.stat().st_size if self.events.exists() else 0

    @property
    def is_running(self) -> bool:
        """Whether a driver lives. Many may ask at once: each takes a shared lock for a moment."""
        with (self.folder / "lock").open("a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
            return False

    @property
    def end(self) -> End | None:
        """How the last driver ended; None where it was killed, or none has run."""
        try:
            return End(**json.loads((self.folder / "end.json").read_text("utf-8")))
        except FileNotFoundError:
            return None

    @property
    def ended_at(self) -> datetime | None:
        """When it ended, or was asked to end before it began; None while it is queued or runs."""
        if self.state in ("queued", "running"):
            return None
        path = self.folder / ("end.json" if self.end else "stop")
        return datetime.fromtimestamp(path.stat().st_mtime, UTC)

    @property
    def begun(self) -> tuple[str, int] | None:
        """When the study that its drivers run was created, and the place behind which its events stand."""
        try:
            found = json.loads((self.folder / "begun.json").read_text("utf-8"))
        except FileNotFoundError:
            return None
        return found["created_at"], found["after"]

    @property
    def stop_asked(self) -> bool:
        """Whether it is not to run."""
        return (self.folder / "stop").exists()

    @property
    def starts(self) -> int:
        """Drivers that were started since it was queued."""
        try:
            return int((self.folder / "starts").read_text())
        except FileNotFoundError:
            return 0

    @property
    def state(self) -> LaunchState:
        """What it is doing."""
        if self.is_running:
            return "running"
        end = self.end
        if end is None:
            return "stopped" if self.stop_asked else "queued"
        return end.state

    @property
    def id(self) -> str:
        """Of this time that it was queued; no other one has it."""
        request = self.request
        return hashlib.sha256(f"{request['name']}\0{request['queued_at']}".encode()).hexdigest()[
            :32
        ]

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        end, request = self.end, self.request
        return {
            "study": request["name"],
            "state": self.state,
            "queued_at": request["queued_at"],
            "starts": self.starts,
            "end": None if end is None else asdict(end),
            "last_event": self._last_event,
        }

    def finish(self, end: End) -> None:
        """Note how a driver ended, and that this is to be told; whoever stopped a study knows it."""
        if end.state != "stopped":
            told = {"delivery": self.id, "study": self.name, "state": end.state, "ended_at": now()}
            (self.folder / UNTOLD).mkdir(exist_ok=True, mode=0o700)
            _write(self.folder / UNTOLD / f"{self.id}.json", told | asdict(end))
        _write(self.folder / "end.json", asdict(end))

    def ran(self, study: StudyRecord) -> bool:
        """Whether it is this study that its drivers run, and not another one that had its name."""
        return self.begun is not None and self.begun[0] == study.created_at.isoformat()

    def begin(self, study: StudyRecord) -> None:
        """Note which study its drivers run, and that events of before it was queued are those of another one."""
        if not self.ran(study):
            facts = {"created_at": study.created_at.isoformat(), "after": self._last_event}
            _write(self.folder / "begun.json", facts)

    def begins(self, study: StudyRecord | None) -> int:
        """The place behind which the events of a study stand; of one that has not begun, those since it was queued."""
        if study is not None and self.begun is not None and self.ran(study):
            return self.begun[1]
        return self._last_event

    def count_start(self) -> None:
        """Note that a driver is started."""
        _write(self.folder / "starts", self.starts + 1)

    def ask_to_stop(self) -> None:
        """Note that it is not to run."""
        (self.folder / "stop").touch()

    def queue(self, request: Mapping[str, Any] | None = None) -> None:
        """Have it run, or run again, with what is asked for now; nothing has changed where that cannot be written."""
        facts = {"queued_at": now(), "last_event": self._events_size}
        _write(self.folder / "request.json", {**(request or self.request), **facts})
        for name in ("starts", "stop", "end.json"):  # with the last of them gone it is queued
            (self.folder / name).unlink(missing_ok=True)

    def hand_over(self, environment: Mapping[str, str]) -> None:
        """Leave the next driver its environment, in a file that nobody else can read."""
        _write(self.folder / "environment.json", environment)

    def take_over(self) -> dict[str, str]:
        """The environment that was left, and remove it: a database URL may hold a password."""
        path = self.folder / "environment.json"
        found: dict[str, str] = json.loads(path.read_text("utf-8"))
        path.unlink()
        return found

    def forget(self) -> None:
        """Remove all that is known of a launch that does not run."""
        shutil.rmtree(self.folder)

    def tell(self, event: str, **facts: Any) -> None:
        """Append an event."""
        append_line(self.events, {"event": event, **facts})

    def events_after(self, offset: int) -> Iterator[tuple[int, dict[str, Any]]]:
        """The events behind a place in the file, each with the place behind it.

        Raises:
            ValueError: If no event ends at that place.
        """
        size = self._events_size
        if offset > size:
            raise ValueError(f"no event ends at {offset}")
        if not size:
            return
        with self.events.open("rb") as file:
            if offset and file.seek(offset - 1) >= 0 and file.read(1) != b"\n":
                raise ValueError(f"no event ends at {offset}")
            file.seek(offset)
            for line in file:
                if not line.endswith(b"\n"):
                    return
                offset += len(line)
                yield offset, json.loads(line)

    def tail(self, most: int) -> int:
        """A place behind which the last events stand, at most so many bytes of them."""
        if not self.events.exists():
            return 0
        with self.events.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            if size <= most:
                return 0
            file.seek(size - most)
            return size - most + len(file.readline())

    def log_after(self, offset: int) -> tuple[str, int]:
        """A piece of the log behind a place, of whole characters, and the place behind it."""
        if not self.log.exists():
            return "", 0
        with self.log.open("rb") as file:
            file.seek(offset)
            piece = file.read(_MOST_LOG)
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        text = decoder.decode(piece)
        return text, offset + len(piece) - len(
            decoder.getstate()[0]
        )  # which are of a cut character


def _write(path: Path, value: Any) -> None:
    """Write a file that is never seen in part."""
    with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False, encoding="utf-8") as file:
        try:
            json.dump(value, file)
            file.close()
            os.replace(file.name, path)
        finally:  # a full disk leaves no files of nothing
            Path(file.name).unlink(missing_ok=True)


def _folder_of(root: Path, name: str) -> Path:
    """A name from a URL may hold anything, its hash is a safe name of a folder."""
    return root / hashlib.sha256(name.encode()).hexdigest()[:20]


def make_launch(root: Path, name: str, study: Mapping[str, Any]) -> Launch:
    """Queue a study; one of that name that has ended is queued again, with this content.

    Raises:
        LeaseError: If it is queued or running.
    """
    launch = Launch(_folder_of(root, name))
    if launch.exists and launch.state in ("queued", "running"):
        raise LeaseError(f"study {name!r} is {launch.state} already", "stop it first")
    launch.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    launch.queue({"name": name, "study": study})
    return launch


def find_launch(root: Path, name: str) -> Launch:
    """The launch of a study.

    Raises:
        NotFoundError: If it was not launched here.
    """
    launch = Launch(_folder_of(root, name))
    if not launch.exists:
        raise NotFoundError(
            f"no study {name!r} was launched here", "launches list those that were"
        )
    return launch


def launches(root: Path) -> list[Launch]:
    """All launches, the one that was queued first first."""
    found = [Launch(path.parent) for path in root.glob("*/request.json")]
    return sorted(found, key=lambda launch: str(launch.request["queued_at"]))
