"""Kinds that cannot be chosen together: they are refused with the space, not after a study has trained them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from sparsearch.spaces.kinds import Kind, Removal, WeightMask
from sparsearch.spaces.positions import Position

__all__ = ["conflicts"]

Places = Mapping[Kind, Sequence[Position]]
"""Kinds of a space, and where each may go."""


def conflicts(places: Places) -> Iterator[str]:
    """What may be cut beside a mask or a rescaled input of the linear that reads it, though they do not go together.

    What stands in for a cut does not merge with either, see ``merge``. A pattern groups neighbouring inputs, so
    that parts of a group cannot go. One problem for each two kinds, with the first position where they meet.
    """
    for removal, cuts in places.items():
        if not isinstance(removal, Removal):
            continue
        readers = {p.module: p for p in cuts if _may_be_cut(removal, p)}
        for kind, hosts in places.items():
            for host in hosts:
                cut = readers.get(host.module)
                problem = cut and _problem(removal, cut, kind, host)
                if problem:
                    yield problem
                    break


def _may_be_cut(removal: Removal, position: Position) -> bool:
    """Whether at least one part may go."""
    return position.units - min(removal.sizes(position)) >= removal.least(position)


def _problem(removal: Removal, cut: Position, kind: Kind, host: Position) -> str | None:
    """Why a kind at the linear that reads what may be cut does not go with the cut."""
    if removal.aligns and kind.stage(host) in ("input", "mask"):
        return (
            f"space.kinds.{removal.name}.compensate: what stands in for {cut.name} does not merge with {kind.name} at "
            f"{host.name}; set compensate to none, or leave {host.name} out of {kind.name} with `on`"
        )
    if isinstance(kind, WeightMask) and kind.pattern:
        width = cut.in_features // cut.units
        parts = [size * width for size in removal.sizes(cut)]
        if any(part % kind.group for part in parts):
            block = "set block to a multiple of it, or " if hasattr(removal, "block") else ""
            return (
                f"space.kinds.{removal.name}: parts of {parts[0]} inputs of {host.name} may go, which breaks groups of "
                f"{kind.group} in weight_mask's pattern {kind.pattern}; {block}leave {host.name} out of it with `on`"
            )
    return None
