"""`sparsearch stop`: end a study's driver, to be continued later."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import TYPE_CHECKING

from sparsearch.cli.console import errors, output, print_json
from sparsearch.cli.options import (
    DEFAULT_DB,
    Db,
    Json,
    StudyName,
    is_server,
    reading,
)
from sparsearch.errors import LeaseError, NotFoundError

if TYPE_CHECKING:
    from sparsearch.results.store.store import Store


__all__ = [
    "stop",
]

_STOP_SECONDS = 90


def stop(study: StudyName, db: Db = DEFAULT_DB, as_json: Json = False) -> None:
    """End a running study's driver: what runs is cancelled and queued, so that `run` continues it."""
    if is_server(db):
        _stop_at_service(study, db, as_json)
        return
    from sparsearch.results.store.store import Store

    with reading(db) as store:
        record = store.find_study(study)
    name = record.name
    with Store.open(db, create=True) as store:
        owner = store.ask_to_stop(name)
        if owner is not None:
            errors().print(f"asked {owner} to end study {name}")
            _wait_until_free(store, name, owner)
    if as_json:
        print_json({"study": name, "stopped": owner})
    elif owner is None and record.finished == record.trials:
        output().print(f"nobody runs study {name}: all of its {record.trials} trials are finished")
    elif owner is None:
        output().print(f"nobody runs study {name}; `sparsearch run` continues it")
    else:
        output().print(f"study {name} is stopped; `sparsearch run` continues it")


def _stop_at_service(study: str, db: str, as_json: bool) -> None:
    """Ask the service that runs a study; one that is queued there has no record yet, and no prefix."""
    from sparsearch.service.client.connection import Connection
    from sparsearch.service.client.launches import stop as stop_launch

    owner = "the queue"
    with suppress(NotFoundError), reading(db) as store:
        record = store.find_study(study)
        study, owner = record.name, record.owner or owner
    with Connection(db) as service:
        was = stop_launch(service, study)
    if as_json:
        print_json({"study": study, "stopped": None if was is None else owner})
    elif was is None:
        output().print(f"nobody runs study {study}; `sparsearch run` continues it")
    else:
        output().print(f"study {study} is stopped; `sparsearch run` continues it")


def _wait_until_free(store: Store, study: str, owner: str) -> None:
    """Until the driver has given the study back."""
    give_up = time.monotonic() + _STOP_SECONDS
    while store.find_study(study).owner is not None:
        if time.monotonic() > give_up:
            raise LeaseError(
                f"{owner} still holds study {study!r} after {_STOP_SECONDS} s",
                "it ends at its next step; if it does not, end that process",
            )
        time.sleep(0.2)
