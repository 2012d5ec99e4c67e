"""Launching studies, and watching them."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from pathlib import Path as FilePath
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Path, Query, Request
from fastapi.responses import StreamingResponse

from sparsearch.config.reader import validate_study
from sparsearch.documents import plain
from sparsearch.errors import ConfigError
from sparsearch.service.access import may_run
from sparsearch.service.audit import note
from sparsearch.service.confinement import Confinement
from sparsearch.service.launches.folder import Launch, find_launch, launches, make_launch
from sparsearch.service.limits.streams import EventStream, event_text
from sparsearch.service.models import LaunchModel, LogModel, PlanModel, StudyFile
from sparsearch.service.problems import Problem
from sparsearch.service.routes.asked import TheStore
from sparsearch.service.settings import ServiceSettings

__all__ = ["launch_events", "place_behind", "router"]

router = APIRouter(tags=["launches"])

_POLL_SECONDS, _SILENT_SECONDS = 0.5, 15.0
_checking = threading.Lock()
"""A check builds a model's skeleton: one at a time keeps the memory small."""

Name = Annotated[str, Path(max_length=200, description="Name of a study that was launched here.")]
Runs = [Depends(may_run)]


def _settings(request: Request) -> ServiceSettings:
    settings: ServiceSettings = request.app.state.settings
    return settings


Settings = Annotated[ServiceSettings, Depends(_settings)]


def _confined(study: dict[str, Any], settings: ServiceSettings) -> dict[str, Any]:
    """The study as it may run: it names nothing but what is allowed."""
    try:
        roots = (*settings.roots, settings.uploads)
        return Confinement(roots, settings.hub, settings.packages).confine(study)
    except ConfigError as error:  # with whatever else is wrong
        others = validate_study(study, FilePath.cwd())[1]
        raise ConfigError([*error.problems, *others]) from error


@router.post("/plans", response_model=PlanModel, dependencies=Runs)
def plan_study(study: StudyFile, settings: Settings, store: TheStore) -> Any:
    """Check a study without launching it: what each budget buys, its trials, and how long they may take.

    The time is that of trials of the same strategies on the same model in this database.
    """
    from sparsearch.workers.plan import plan as plan_trials
    from sparsearch.workers.preflight import check_study

    content = _confined(study.root, settings)
    with _checking:
        checked = check_study(content)
    trials = plan_trials(checked.config, checked.budgets)
    taken = store.mean_seconds(checked.config.model.location)
    known = [taken[t.strategy] for t in trials if t.strategy in taken]
    return plain(
        {
            **checked.summary.as_dict(),
            "trials": len(trials),
            "proposed": 0 if checked.config.outer is None else checked.config.outer.trials,
            "seconds": sum(known) * len(trials) / len(known) if known else None,
            "seconds_from": len(known),
        }
    )


@router.post("/launches", status_code=202, response_model=LaunchModel, dependencies=Runs)
def launch_study(study: StudyFile, settings: Settings, request: Request) -> Any:
    """Launch a study, or continue it: it is checked, queued, and run by a process of its own."""
    from sparsearch.workers.preflight import check_study

    content = _confined(study.root, settings)
    with _checking:
        checked = check_study(content)
    made = make_launch(settings.launches, checked.config.name, content)
    note(request, "launch", made.name)
    return made.as_dict()


@router.get("/launches", response_model=list[LaunchModel])
def list_launches(settings: Settings) -> Any:
    """List the studies that were launched here: what is queued, runs, has finished, failed or was stopped."""
    return [launch.as_dict() for launch in launches(settings.launches)]


@router.get("/launches/{study}", response_model=LaunchModel)
def show_launch(study: Name, settings: Settings) -> Any:
    """Show one launch."""
    return find_launch(settings.launches, study).as_dict()


@router.post("/launches/{study}/stop", response_model=LaunchModel, dependencies=Runs)
def stop_study(study: Name, settings: Settings, request: Request) -> Any:
    """Stop a study: what runs is cancelled and queued, so that it can be continued."""
    found = find_launch(settings.launches, study)
    if found.state in ("queued", "running"):
        found.ask_to_stop()
        note(request, "stop", study)
    return found.as_dict()


@router.post("/launches/{study}/continue", response_model=LaunchModel, dependencies=Runs)
def continue_study(study: Name, settings: Settings, request: Request) -> Any:
    """Queue a study again that has failed or was stopped; one that has finished grows by nothing."""
    found = find_launch(settings.launches, study)
    if found.is_running and found.stop_asked:
        raise Problem(f"study {study!r} is still ending", "continue it in a moment", status=409)
    if found.state in ("failed", "stopped", "finished"):
        found.queue()
        note(request, "continue", study)
    return found.as_dict()


@router.get("/launches/{study}/log", response_model=LogModel)
def read_log(
    study: Name, settings: Settings, offset: Annotated[int, Query(ge=0, lt=2**63)] = 0
) -> Any:
    """Read what the study's drivers printed, behind a place in it, 64 kB at most."""
    text, following = find_launch(settings.launches, study).log_after(offset)
    return {"text": text, "next": following}


@router.get(
    "/launches/{study}/events",
    response_class=StreamingResponse,
    responses={200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}}},
)
async def watch_events(
    study: Name,
    settings: Settings,
    request: Request,
    last_event_id: Annotated[str | None, Header(max_length=20)] = None,
    after: Annotated[str, Query(max_length=20, description="As Last-Event-ID says.")] = "0",
) -> Any:
    """Watch a study: server-sent events, each with an id after which a client that comes back goes on."""
    found = find_launch(settings.launches, study)
    return launch_events(found, place_behind(found, last_event_id or after), request)


def place_behind(found: Launch, after: str) -> int:
    """The place of an id among the events of a launch.

    Raises:
        Problem: 422, if there is no such event.
    """
    if not (after.isascii() and after.isdecimal() and len(after) <= 20):
        raise Problem(f"Last-Event-ID {after!r} is no id of an event", status=422)
    try:
        next(found.events_after(int(after)), None)
    except ValueError as error:
        raise Problem(f"Last-Event-ID: {error}", status=422) from error
    return int(after)


def launch_events(found: Launch, place: int, request: Request) -> EventStream:
    """The stream of a launch behind a place."""
    return EventStream(_stream(found, place), request.app.state.streams)


async def _stream(launch: Launch, offset: int) -> AsyncIterator[str]:
    """Events as they come, until the study has ended; a comment now and then, so that proxies keep it open."""
    silent = 0.0
    while True:
        try:
            over = launch.state not in ("queued", "running")
            told = list(launch.events_after(offset))
        except (FileNotFoundError, ValueError):
            return  # it was deleted: the client comes back, and hears so
        for offset, event in told:
            yield event_text(offset, event["event"], event)
        if over and not told:
            yield event_text(offset, "idle", launch.as_dict())
            return
        silent = 0.0 if told else silent + _POLL_SECONDS
        if silent >= _SILENT_SECONDS:
            silent = 0.0
            yield ": still here\n\n"
        if not over:
            await asyncio.sleep(_POLL_SECONDS)
