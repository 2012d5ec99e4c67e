"""`sparsearch diff`: what two structures choose differently."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import RenderableType

from sparsearch.cli.console import output, print_json
from sparsearch.cli.options import DEFAULT_DB, Db, Json, StructureHash, reading
from sparsearch.cli.tables import NOTHING, SHOWN_DIGITS, table_of

if TYPE_CHECKING:
    from sparsearch.results.report.difference import Change, StructureDifference

__all__ = ["diff", "difference_table"]


def difference_table(difference: StructureDifference) -> RenderableType:
    """Positions and kinds in which two structures differ."""
    from sparsearch.results.report.grid import candidate_name

    def name(change: Change, number: int) -> str:
        candidate = (change.first, change.second)[number]
        options = [f"{n}: {_said(both[number])}" for n, both in change.options.items()]
        return NOTHING if candidate is None else ", ".join([candidate_name(candidate), *options])

    hashes = (difference.first.hash[:SHOWN_DIGITS], difference.second.hash[:SHOWN_DIGITS])
    right = "parameters, second minus first"
    table = table_of("position", "kind", *hashes, right, right=(right,))
    for c in difference.changes:
        more = (c.second.params if c.second else 0) - (c.first.params if c.first else 0)
        table.add_row(c.position, c.kind, name(c, 0), name(c, 1), f"{more:+,}")
    total = difference.second.trainable_params - difference.first.trainable_params
    table.add_section()
    table.add_row("all", "", f"{difference.same} alike", "", f"{total:+,}")
    return table


def _said(option: object) -> str:
    return "default" if option is None else str(option)


def diff(
    structure: StructureHash,
    other: Annotated[str, typer.Argument(metavar="OTHER", help="Hash of another structure.")],
    db: Db = DEFAULT_DB,
    as_json: Json = False,
) -> None:
    """Show what two structures choose differently, position by position."""
    from sparsearch.results.report.difference import compare_structures

    with reading(db) as store:
        first, second = store.load_structure(structure), store.load_structure(other)
    difference = compare_structures(first, second)
    if as_json:
        print_json(difference.as_dict())
    else:
        output().print(difference_table(difference))
