"""`sparsearch show`: what a structure attaches where."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType

from sparsearch.cli import console
from sparsearch.cli.commands.reading.best import best_table
from sparsearch.cli.console import errors, output, print_json
from sparsearch.cli.options import (
    DEFAULT_DB,
    Db,
    Json,
    OfStudy,
    Plot,
    StructureHash,
    reading,
)
from sparsearch.cli.tables import count_text, table_of
from sparsearch.errors import BackboneError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from sparsearch.results.records import Best
    from sparsearch.spaces.structure import Structure


__all__ = [
    "show",
    "structure_table",
]


def structure_table(best: Best) -> RenderableType:
    """A structure's candidates, grouped by layer."""
    from sparsearch.results.report.grid import candidate_name, place_of, pruned_fraction_of

    layers: dict[str, dict[str, list[Any]]] = {}
    for c in best.structure.candidates:
        place = place_of(c.position)
        row = f"{place.stack} {place.row}".strip()
        layers.setdefault(row, {}).setdefault(place.column, []).append(c)
    table = table_of("layer", "position", "what", "params", "bytes", right=("params", "bytes"))
    for layer, columns in layers.items():
        for number, (column, chosen) in enumerate(columns.items()):
            names = " + ".join(
                candidate_name(c, pruned_fraction_of(c, best.structure)) for c in chosen
            )
            totals = sum(c.params for c in chosen), sum(c.bytes for c in chosen)
            table.add_row("" if number else layer, column, names, *map(count_text, totals))
        table.add_section()
    everything = best.structure
    count = f"{len(everything.candidates)} candidates"
    totals = everything.trainable_params, everything.bytes
    table.add_row("all", "", count, *map(count_text, totals))
    return Group(best_table(best), table)


def show(
    structure: StructureHash,
    study: OfStudy = None,
    plot: Plot = None,
    db: Db = DEFAULT_DB,
    as_json: Json = False,
) -> None:
    """Show what a structure attaches where; the picture is a heat map, layers x positions."""
    with reading(db) as store:
        found = store.find_structure(structure, study)
    if plot is not None:
        from sparsearch.results.report.structure_map import write_structure_plot

        write_structure_plot(found, plot, _position_names(found.structure))
        errors().print(f"wrote {plot}", soft_wrap=True)
    if not as_json:
        output().print(structure_table(found))
        return
    print_json(found.as_detailed_dict())


def _position_names(structure: Structure) -> tuple[str, ...]:
    """All positions of a structure's backbone where that is at hand, else none."""
    from sparsearch.spaces.backbone.identity import hash_settings, same_settings
    from sparsearch.spaces.backbone.loading import locate, skeleton
    from sparsearch.spaces.backbone.parameters import positions_of

    try:
        path = locate(structure.backbone.path)
        # A hub id could mean a download, for nothing but empty cells.
        if not Path(path).exists():
            return ()
        with console.stdout_is_for_results():
            model = skeleton(path)
    except BackboneError:
        return ()
    if not same_settings(hash_settings(model), structure.backbone.config_hash):
        return ()
    return tuple(position.name for position in positions_of(model))
