"""`sparsearch report`: a study as one page for a colleague."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sparsearch.cli.console import errors, print_json
from sparsearch.cli.options import DEFAULT_DB, Db, Json, StudyName, as_html, reading

__all__ = ["report"]


def report(
    study: StudyName,
    out: Annotated[
        Path,
        typer.Option("--out", metavar="OUT.html", callback=as_html, help="The file to write."),
    ],
    db: Db = DEFAULT_DB,
    as_json: Json = False,
) -> None:
    """Write a study as one HTML file: scores over seeds, intervals against rivals, the best structures."""
    from sparsearch.results.report.study_report import write_report

    with reading(db) as store:
        name = store.find_study(study).name
        write_report(store, name, out)
    if as_json:
        print_json({"study": name, "path": str(out), "bytes": out.stat().st_size})
    else:
        errors().print(f"wrote {out}", soft_wrap=True)
