"""Studies that a service runs: launched, followed over broken connections, stopped."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import httpx2

from sparsearch.errors import ConfigError, LeaseError
from sparsearch.service.client.connection import Connection, Unreachable, segment, understood
from sparsearch.service.launches.folder import End

__all__ = ["Launched", "follow", "launch", "stop", "wait_for_answer"]

_SILENCE = httpx2.Timeout(60.0, connect=10.0)
"""The service says every 15 seconds that it is there."""

_GIVE_UP_SECONDS = 600.0
_STOP_SECONDS = 90.0


@dataclass(frozen=True)
class Launched:
    """A study at a service.

    Attributes:
        study: Its name.
        state: queued, running, finished, failed or stopped.
        last_event: Id of the last event before it was queued.
        end: How its driver ended, if it has.
    """

    study: str
    state: str
    last_event: int
    end: End | None

    @classmethod
    @understood()
    def from_dict(cls, facts: Mapping[str, Any]) -> Launched:
        """From the API's object."""
        end = None if facts["end"] is None else End(**facts["end"])
        return cls(facts["study"], facts["state"], facts["last_event"], end)

    @property
    def is_over(self) -> bool:
        """Whether it runs no more, and is not about to."""
        return self.state not in ("queued", "running")


def launch(connection: Connection, study: Mapping[str, Any]) -> Launched:
    """Launch a study, or continue it.

    Args:
        connection: To the service.
        study: What a study file holds.

    Raises:
        ConfigError: If it is wrong, with every problem found.
        LeaseError: If it is queued or running.
    """
    try:
        json.dumps(study, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ConfigError([f"the study holds what JSON cannot: {error}"]) from error
    return Launched.from_dict(connection.post("/launches", study))


def follow(
    connection: Connection, study: str, after: int, patience: float = _GIVE_UP_SECONDS
) -> Iterator[tuple[str, dict[str, Any]]]:
    """The events of a study as they happen, each once: names and facts; the last is ``idle``.

    Args:
        connection: To the service; while it does not answer, it is asked again.
        study: The name.
        after: Id of the last event that is known.
        patience: Seconds without an answer after which it is given up.

    Raises:
        Unreachable: If it is given up.
    """
    path = f"/launches/{segment(study)}/events"
    lost: float | None = None
    while True:
        try:
            with connection.stream(
                path, _SILENCE, headers={"last-event-id": str(after)}
            ) as answer:
                lost = None
                for event in httpx2.EventSource(answer, max_event_size=None):
                    after = int(event.id)
                    yield event.event, json.loads(event.data)
                    if event.event == "idle":
                        return
        except Unreachable as error:
            lost = lost or time.monotonic()
            if time.monotonic() - lost > patience:
                said = f"{error.message}; study {study!r} is no longer watched"
                raise Unreachable(said, error.hint) from error
        time.sleep(1.0)


def wait_for_answer(connection: Connection, patience: float = _GIVE_UP_SECONDS) -> None:
    """Wait for a service that may be starting again.

    Raises:
        Unreachable: If it does not answer in so many seconds.
    """
    give_up = time.monotonic() + patience
    while True:
        try:
            connection.get("/health")
            return
        except Unreachable:
            if time.monotonic() > give_up:
                raise
        time.sleep(1.0)


def stop(connection: Connection, study: str) -> Launched | None:
    """Stop a study and wait until its driver has ended.

    Returns:
        What it was before; None if it did not run.

    Raises:
        NotFoundError: If it was not launched there.
        LeaseError: If the driver does not end.
    """
    path = f"/launches/{segment(study)}"
    before = Launched.from_dict(connection.get(path))
    if before.is_over:
        return None
    connection.post(f"{path}/stop")
    give_up = time.monotonic() + _STOP_SECONDS
    while not Launched.from_dict(connection.get(path)).is_over:
        if time.monotonic() > give_up:
            raise LeaseError(
                f"study {study!r} still runs after {_STOP_SECONDS:.0f} s",
                "it ends at its next step; ask again",
            )
        time.sleep(0.5)
    return before
