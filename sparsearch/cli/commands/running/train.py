"""`sparsearch train`: train a stored structure on a task."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import RenderableType

from sparsearch.cli import console
from sparsearch.cli.console import errors, output, print_json
from sparsearch.cli.options import (
    DEFAULT_DB,
    Db,
    Json,
    Overrides,
    StudyFile,
    reading,
)
from sparsearch.cli.tables import facts, hash_fact, score_text, warning_line
from sparsearch.errors import StoreError, StructureError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from sparsearch.spaces.structure import Structure


__all__ = [
    "train",
]


def train(
    source: Annotated[
        str,
        typer.Argument(
            metavar="DIR_OR_STRUCTURE", help="An exported folder or file, or a structure's hash."
        ),
    ],
    study: StudyFile,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", help="Folder for the trained structure."),
    ] = None,
    overrides: Overrides = None,
    db: Db = DEFAULT_DB,
    as_json: Json = False,
) -> None:
    """Train a structure as a study file says, from fresh modules and a fresh head."""
    from sparsearch.cli.progress import PhaseBar
    from sparsearch.config.reader import read_study

    read_study(study, overrides or ())
    structure = _structure_from(source, db)
    from sparsearch.workers.trials.train_structure import train_structure

    with console.stdout_is_for_results(), PhaseBar(errors()) as bar:
        done = train_structure(
            structure, study, overrides=tuple(overrides or ()), out=out, observe=bar
        )
    if as_json:
        document = {"structure": done.structure.hash, "metric": done.metric, "score": done.score}
        document |= {"trainable_params": done.trainable_params, "stored_bytes": done.stored_bytes}
        document |= {"test_score": done.test_score, "epoch": done.epoch, "seconds": done.seconds}
        document |= {"out": None if done.out is None else str(done.out)}
        print_json({**document, "warnings": done.warnings})
        return
    valid, test = map(score_text, (done.score, done.test_score))
    rows: list[tuple[str, RenderableType]] = [
        hash_fact(done.structure.hash),
        ("parameters", f"{done.trainable_params:,}"),
        ("stored", f"{done.stored_bytes:,} bytes, the head apart"),
        (done.metric, f"{valid} validation (best of epoch {done.epoch}), {test} test"),
        ("seconds", f"{done.seconds:.1f}"),
        ("written to", str(done.out) if done.out is not None else "nowhere; --out DIR keeps it"),
    ]
    output().print(facts(rows))
    for warning in done.warnings:
        output().print(warning_line(warning))


def _structure_from(source: str, db: str) -> Structure:
    """A folder or file that exists, else a hash in the database."""
    path = Path(source)
    if path.exists():
        from sparsearch.spaces.structure import Structure

        return Structure.load(path)
    if len(path.parts) > 1 or path.suffix or source.endswith("/"):
        raise StructureError(
            f"there is no file or folder {source!r}",
            "give a folder written by `sparsearch export --to spec`, or a structure's hash",
        )
    try:
        with reading(db) as store:
            return store.load_structure(source)
    except StoreError as error:
        raise StructureError(
            f"{source!r} is neither a file or folder nor found as a hash: {error.message}",
            error.hint,
        ) from error
