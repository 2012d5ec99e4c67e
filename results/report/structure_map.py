"""Where structures put things: layers x positions, kinds by colour, sizes by area."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from sparsearch.config.registry import KINDS
from sparsearch.results.answers import Placements
from sparsearch.results.records import Best
from sparsearch.results.report.grid import GridCell, candidate_name, place_of, pruned_fraction_of
from sparsearch.results.report.html import write_page
from sparsearch.results.report.summary import budget_name
from sparsearch.spaces.candidate import Candidate
from sparsearch.spaces.kinds.precision import split_bits
from sparsearch.spaces.structure import Structure

__all__ = ["Mark", "PlacementMap", "frequency_map", "structure_map", "write_structure_plot"]

Cell: TypeAlias = tuple[str, str, str]
"""Stack, row and column."""

_COLUMNS = (
    *(f"{block}.{part}" for block in ("attn", "cross") for part in "qkvo"),
    *("ffn.gate", "ffn.up", "ffn.down"),
    *("attn.norm", "cross.norm", "ffn.norm", "norm"),
    *("attn", "cross", "ffn"),
)
"""Left to right: linears, norms, whole blocks. What is not listed stands at the end."""

_LINE, _COLUMN, _LEFT, _TOP, _LARGEST, _SMALLEST = 22, 124, 96, 26, 16, 5
"""Pixels: height of a mark, width of a column, what is left of and above the cells, sides of squares."""
_COLORS = 12


@dataclass(frozen=True)
class Mark:
    """What one kind does in one cell.

    Attributes:
        kind: Its name.
        share: From 0 to 1, the area of its square.
        label: Beside the square.
        note: All about it, for who points at it.
    """

    kind: str
    share: float
    label: str
    note: str

    @property
    def color(self) -> int:
        """Number of the kind's colour in ``style.css``."""
        names, kind = KINDS.names(), split_bits(self.kind)[0]
        return (names.index(kind) if kind in names else len(names)) % _COLORS

    @property
    def side(self) -> float:
        """Of the square, in pixels."""
        return round(max(float(_SMALLEST), _LARGEST * math.sqrt(self.share)), 1)


@dataclass(frozen=True)
class _Row:
    stack: str
    name: str
    top: int
    height: int


@dataclass(frozen=True)
class PlacementMap:
    """Rows, columns, and the marks of each cell; empty cells are there where the backbone has a position.

    Attributes:
        cells: The marks of each.
        words: The whole map in a line, for who cannot see it.
    """

    cells: Mapping[Cell, tuple[Mark, ...]]
    words: str
    _places: tuple[GridCell, ...] = field(repr=False)

    line, column_width, left = _LINE, _COLUMN, _LEFT

    @property
    def columns(self) -> tuple[str, ...]:
        """Left to right."""
        known = {column: i for i, column in enumerate(_COLUMNS)}
        found = {place.column for place in self._places}
        return tuple(sorted(found, key=lambda c: (known.get(c, len(known)), c)))

    @property
    def rows(self) -> tuple[_Row, ...]:
        """From the input to the output, each as high as its fullest cell."""
        rows, top = [], _TOP
        for stack, name in _rows(self._places):
            fullest = max(len(self.cells.get((stack, name, c), ())) for c in self.columns)
            height = _LINE * max(1, fullest) + 4
            rows.append(_Row(stack, name, top, height))
            top += height
        return tuple(rows)

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        rows = self.rows
        return _LEFT + _COLUMN * len(self.columns), rows[-1].top + rows[
            -1
        ].height if rows else _TOP

    @property
    def legend(self) -> tuple[Mark, ...]:
        """A mark of each kind."""
        marks = (mark for cell in self.cells.values() for mark in cell)
        return tuple({mark.kind: mark for mark in marks}.values())


def _rows(places: Sequence[GridCell]) -> Iterable[tuple[str, str]]:
    """(stack, row) from the input to the output; layers between chosen ones are there too."""
    stacks = sorted({p.stack for p in places}, key=lambda s: (s == "decoder", s))
    for stack in stacks:
        inside = [p for p in places if p.stack == stack]
        outside = list(dict.fromkeys(p.row for p in inside if p.layer is None))
        yield from ((stack, row) for row in outside if row != "final")
        count = max((p.layer for p in inside if p.layer is not None), default=-1) + 1
        yield from ((stack, f"layer {layer}") for layer in range(count))
        if "final" in outside:
            yield stack, "final"


def _cell(place: GridCell) -> Cell:
    return place.stack, place.row, place.column


def structure_map(structure: Structure, positions: Sequence[str] = ()) -> PlacementMap:
    """The map of one structure; areas are trainable parameters, of what is cut or masked how much of it.

    Args:
        structure: Any.
        positions: Canonical names of all positions of the backbone, so that empty ones show;
            without them the map spans the layers and columns that the structure uses.
    """
    places = [place_of(name) for name in positions]
    cells: dict[Cell, tuple[Mark, ...]] = {_cell(place): () for place in places}
    largest = _largest(structure.candidates)
    for c in structure.candidates:
        place = place_of(c.position)
        places.append(place)
        pruned = pruned_fraction_of(c, structure)
        label = candidate_name(c, pruned)
        amount = c.size if c.which else c.params
        share = pruned if pruned is not None else amount / largest[bool(c.which), c.kind]
        note = f"{c.position}: {label}, {c.params:,} parameters, {c.bytes:,} stored bytes"
        mark = Mark(c.kind, share, label, note)
        cells[_cell(place)] = (*cells.get(_cell(place), ()), mark)
    words = f"{len(structure.candidates)} candidates, {structure.trainable_params:,} parameters"
    return PlacementMap(cells, words, tuple(places))


def _largest(candidates: Sequence[Candidate]) -> dict[tuple[bool, str], int]:
    """What fills a square: the most parameters of all that is attached, the largest cut of each kind."""
    params = max((c.params for c in candidates if not c.which), default=1)
    found = {(False, c.kind): max(1, params) for c in candidates if not c.which}
    for c in candidates:
        if c.which:
            found[True, c.kind] = max(found.get((True, c.kind), 1), c.size)
    return found


def frequency_map(found: Placements) -> PlacementMap:
    """How many of several structures put a kind at each place.

    Args:
        found: As ``Store.front_placements`` gives it.
    """
    cells: dict[Cell, tuple[Mark, ...]] = {}
    places = []
    for one in found.counts:
        place = place_of(one.position)
        places.append(place)
        span = f"{one.smallest}"
        span += f" to {one.largest}" if one.smallest < one.largest else ""
        of = f"{one.structures} of {found.structures}"
        note = f"{one.position}: {one.kind} in {of} structures, size {span}"
        share = one.structures / found.structures
        mark = Mark(one.kind, share, f"{one.kind} {100 * share:.0f}%", note)
        cells[_cell(place)] = (*cells.get(_cell(place), ()), mark)
    return PlacementMap(cells, f"{found.structures} structures", tuple(places))


def write_structure_plot(best: Best, path: Path, positions: Sequence[str] = ()) -> None:
    """Write the map of a structure, see ``structure_map``, with what its trial reached.

    Raises:
        ExportError: If the file cannot be written.
    """
    test = "" if best.test_score is None else f" (test {best.test_score:.4f})"
    budget = f" at {budget_name(best.budget)}" if best.budget is not None else ""
    facts = (
        f"{best.task}, {best.metric} {best.score:.4f}{test}",
        f"{best.trainable_params:,} trainable parameters, head {best.head_params:,}",
        f"{best.stored_bytes:,} stored bytes",
        f"seed {best.seed}",
    )
    write_page(
        path,
        "--plot",
        "map.html",
        figures=False,
        title=f"structure {best.structure.hash[:12]}",
        heading=f"{best.study}: {best.strategy}{budget} on {best.model}",
        facts=facts,
        map=structure_map(best.structure, positions),
    )
