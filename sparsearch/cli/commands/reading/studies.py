"""`sparsearch studies`: the studies of a database."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import RenderableType

from sparsearch.cli.console import errors, output, print_json
from sparsearch.cli.options import (
    DEFAULT_DB,
    Db,
    Json,
    reading,
)
from sparsearch.cli.tables import NOTHING, score_text, table_of, task_names

if TYPE_CHECKING:
    from rich.console import RenderableType

    from sparsearch.results.records import StudyRecord


__all__ = [
    "studies",
    "studies_table",
]


def studies_table(studies: Sequence[StudyRecord]) -> RenderableType:
    """All studies."""
    columns = ("study", "model", "task", "metric", "trials", "finished", "best", "run by")
    table = table_of(*columns, right=("trials", "finished", "best"))
    for s, task in zip(studies, task_names(studies), strict=True):
        table.add_row(
            s.name,
            s.model,
            task,
            s.metric,
            str(s.trials),
            str(s.finished),
            score_text(s.best_score),
            s.owner or NOTHING,
        )
    return table


def studies(db: Db = DEFAULT_DB, as_json: Json = False) -> None:
    """List the studies of a database."""
    with reading(db) as store:
        records = store.studies()
    if as_json:
        print_json([record.as_dict() for record in records])
    elif records:
        output().print(studies_table(records))
    else:
        errors().print("no study yet; `sparsearch run STUDY.yaml` launches one")
