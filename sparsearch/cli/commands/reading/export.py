"""`sparsearch export`: write a structure for training or serving."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sparsearch.cli import console
from sparsearch.cli.console import output, print_json
from sparsearch.cli.options import (
    DEFAULT_DB,
    Db,
    Json,
    OfStudy,
    StructureHash,
    reading,
)
from sparsearch.config.formats import ExportFormat, ServingFormat
from sparsearch.errors import StoreError

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
            help="structure.json and weights; an adapter folder for PEFT; or a merged, smaller model.",
        ),
    ] = ExportFormat.spec,
    also: Annotated[
        list[ServingFormat] | None,
        typer.Option("--also", help="A serving file beside a checkpoint; repeatable."),
    ] = None,
    study: OfStudy = None,
    db: Db = DEFAULT_DB,
    as_json: Json = False,
) -> None:
    """Write a trained structure for other tools, and prove it by loading it again."""
    if also and to != ExportFormat.checkpoint:
        raise typer.BadParameter("--also goes with --to checkpoint")
    with reading(db) as store:
        best = store.find_structure(structure, study)
        weights = store.weights(best.study, best.trial)
    if weights is None:
        raise StoreError(
            f"trial {best.trial} of study {best.study!r} has no stored weights",
            f"train the structure anew: sparsearch train {best.structure.hash[:12]} STUDY.yaml",
        )
    from sparsearch.results.export.export import export as export_structure

    with console.stdout_is_for_results():
        report = export_structure(best, weights, to, out, tuple(f.value for f in also or ()))
    if as_json:
        facts = {"structure": best.structure.hash, "to": to, "path": str(report.path)}
        proof = {"max_difference": report.max_difference}
        print_json({**facts, "files": report.files, "notes": report.notes, **proof})
        return
    screen = output()
    screen.print(f"structure {best.structure.hash[:12]} is in {report.path}", soft_wrap=True)
    for file in report.files:
        screen.print(f"  {file}", soft_wrap=True)
    for note in report.notes:
        screen.print(f"note: {note}", soft_wrap=True)
    screen.print(f"loaded again; largest difference of the logits {report.max_difference:.2g}")
