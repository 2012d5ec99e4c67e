"""Places: how positions and candidates are named to a reader, and where they stand in a map."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sparsearch.spaces.candidate import Candidate
    from sparsearch.spaces.structure import Structure

__all__ = ["GridCell", "candidate_name", "place_of", "pruned_fraction_of"]

_LAYERED = re.compile(r"^(?P<stack>.*?)layers\.(?P<layer>\d+)\.(?P<column>.+)$")
_SIZE_LETTER = {"lora": "r", "low_rank_adapter": "w", "adapter": "w"}


@dataclass(frozen=True)
class GridCell:
    """A position as a cell of the map.

    Attributes:
        stack: ``encoder`` or ``decoder``; empty for a model with one stack.
        row: ``layer 3``, or what lies outside the layers: ``embeddings``, ``final``.
        column: What it is in its row: ``attn.q``, ``norm``.
        layer: Index of the layer, None outside the layers.
    """

    stack: str
    row: str
    column: str
    layer: int | None


def place_of(position: str) -> GridCell:
    """Where a canonical position stands in the map.

    >>> place_of("decoder.layers.3.cross.v")
    GridCell(stack='decoder', row='layer 3', column='cross.v', layer=3)
    >>> place_of("embeddings.norm").row
    'embeddings'
    """
    match = _LAYERED.match(position)
    if match is not None:
        layer = int(match["layer"])
        return GridCell(match["stack"].rstrip("."), f"layer {layer}", match["column"], layer)
    before, _, column = position.rpartition(".")
    if before in ("encoder", "decoder"):
        return GridCell(before, "final", column, None)
    return GridCell("", before or "final", column, None)


def pruned_fraction_of(candidate: Candidate, structure: Structure) -> float | None:
    """Share of its matrix that a mask sets to zero; None for what is no mask."""
    return structure.kind(candidate.kind).pruned_fraction(candidate.size)


def candidate_name(candidate: Candidate, pruned: float | None = None) -> str:
    """Kind and size: ``lora r2``, ``7 heads cut``, of a mask ``55% pruned``; a kind without a size by its name."""
    if pruned is not None:
        return f"{100 * pruned:.3g}% pruned"
    if candidate.which:
        return f"{candidate.size} {candidate.kind} cut"
    letter = _SIZE_LETTER.get(candidate.base_kind)
    if letter is not None:
        return f"{candidate.kind} {letter}{candidate.size}"
    return candidate.kind if candidate.size == 1 else f"{candidate.kind} {candidate.size}"
