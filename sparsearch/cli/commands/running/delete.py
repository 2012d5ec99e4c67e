"""`sparsearch delete`: a study, with all that belongs to it alone."""

from __future__ import annotations

from typing import Annotated

import typer

from sparsearch.cli.console import errors, output, print_json
from sparsearch.cli.options import DEFAULT_DB, Db, Json, is_server, reading
from sparsearch.errors import ConfigError

__all__ = ["delete"]


def delete(
    study: Annotated[str, typer.Argument(metavar="STUDY", help="Its whole name.")],
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    db: Db = DEFAULT_DB,
    as_json: Json = False,
) -> None:
    """Delete a study with its trials and weights, and structures that no other study has."""
    with reading(db) as store:
        record = store.find_study(study)
    if record.name != study:
        raise ConfigError([f"{study!r} is the beginning of {record.name!r}: write the whole name"])
    if not yes:
        errors().print(f"study {study} has {record.trials} trials, {record.finished} finished")
        typer.confirm("Delete it?", abort=True, err=True)
    if is_server(db):
        from sparsearch.service.client.connection import Connection, segment

        with Connection(db) as service:
            service.delete(f"/studies/{segment(study)}", confirm=study)
    else:
        from sparsearch.results.store.store import Store

        with Store.open(db, create=True) as store:
            store.delete_study(study)
    if as_json:
        print_json({"deleted": study, "trials": record.trials})
    else:
        output().print(f"study {study} is deleted", soft_wrap=True)
