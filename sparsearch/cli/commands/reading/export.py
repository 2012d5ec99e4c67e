"""`sparsearch export`: write a structure for training or serving."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sparsearch.cli import console
from sparsearch.cli.console import output, print_json
from sparsearch.cli.options import (
    DEFAULT_DB,
    Db,
    Json,
    OfStudy,
    StructureHash,
    is_server,
)
from sparsearch.config.formats import ExportFormat, ServingFormat
from sparsearch.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sparsearch.results.export.folders import ExportReport

__all__ = [
    "export",
]


def export(
    structure: StructureHash,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder to write.")],
    to: Annotated[
        ExportFormat,
        typer.Option(
            "--to",
            help="structure.json and weights; adapters for PEFT or llama.cpp; or a merged, smaller model.",
        ),
    ] = ExportFormat.spec,
    also: Annotated[
        list[ServingFormat] | None,
        typer.Option("--also", help="A serving file beside a checkpoint; repeatable."),
    ] = None,
    max_bytes: Annotated[
        str | None,
        typer.Option(
            metavar="N|SHARE%",
            help="Round its values until it stores at most so much: like 817, or 0.001% of the backbone.",
        ),
    ] = None,
    study: OfStudy = None,
    db: Db = DEFAULT_DB,
    as_json: Json = False,
) -> None:
    """Write a trained structure for other tools, and prove it by loading it again."""
    if also and to != ExportFormat.checkpoint:
        raise typer.BadParameter("--also goes with --to checkpoint")
    serving = tuple(f.value for f in also or ())
    if is_server(db):
        from sparsearch.service.client.connection import Connection
        from sparsearch.service.client.exports import download_export

        with Connection(db) as service:
            asked = {"to": to.value, "also": serving, "study": study, "max_bytes": max_bytes}
            name, report = download_export(service, structure, asked, out)
    else:
        name, report = _export(db, structure, study, to, out, serving, max_bytes)
    if as_json:
        facts = {"structure": name, "to": to, "path": str(report.path)}
        proof = {"max_difference": report.max_difference}
        print_json({**facts, "files": report.files, "notes": report.notes, **proof})
        return
    screen = output()
    screen.print(f"structure {name[:12]} is in {report.path}", soft_wrap=True)
    for file in report.files:
        screen.print(f"  {file}", soft_wrap=True)
    for note in report.notes:
        screen.print(f"note: {note}", soft_wrap=True)
    screen.print(f"loaded again; largest difference of the logits {report.max_difference:.2g}")


def _export(
    db: str,
    structure: str,
    study: str | None,
    to: ExportFormat,
    out: Path,
    also: Sequence[str],
    max_bytes: str | None,
) -> tuple[str, ExportReport]:
    """Export from a database: the structure's hash, and what was written."""
    from sparsearch.results.store.store import Store

    with Store.open(db, create=False) as store:
        best = store.find_structure(structure, study)
        weights = store.weights(best.study, best.trial)
    if weights is None:
        raise StoreError(
            f"trial {best.trial} of study {best.study!r} has no stored weights",
            f"train the structure anew: sparsearch train {best.structure.hash[:12]} STUDY.yaml",
        )
    from sparsearch.results.export.export import export as export_structure

    with console.stdout_is_for_results():
        if max_bytes is None:
            return best.structure.hash, export_structure(best, weights, to, out, also)
        from sparsearch.results.export.round_to_budget import round_to_budget, rounding_note

        rounded, packed = round_to_budget(best, weights, max_bytes)
        report = export_structure(rounded, packed, to, out, also)
    notes = (rounding_note(best, rounded), *report.notes)
    return rounded.structure.hash, replace(report, notes=notes)
