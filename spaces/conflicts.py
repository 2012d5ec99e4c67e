"""Kinds that cannot be chosen together: they are refused with the space, not after a study has trained them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from sparsearch.spaces.families.position import Position
from sparsearch.spaces.kinds import Kind

__all__ = ["conflicts"]

Places = Mapping[Kind, Sequence[Position]]
"""Kinds of a space, and where each may go."""


def conflicts(places: Places) -> Iterator[str]:
    """What may be cut beside a mask or a rescaled input of the linear that reads it, though they do not go together.

    What stands in for a cut does not merge with either, see ``merge``. A pattern groups neighbouring inputs, so
    that parts of a group cannot go. What computes with heads needs all of them. One problem for each two kinds, with
    the first position where they meet.
    """
    for removal, cuts in places.items():
        if removal.role != "remove":
            continue
        readers = {p.module: p for p in cuts if _may_be_cut(removal, p)}
        for kind, hosts in places.items():
            for host in hosts:
                cut = readers.get(host.module)
                problem = cut and _problem(removal, cut, kind, host)
                if problem:
                    yield problem
                    break


def _may_be_cut(removal: Kind, position: Position) -> bool:
    """Whether at least one part may go."""
    return position.units - min(removal.sizes(position)) >= removal.least(position)


def _problem(removal: Kind, cut: Position, kind: Kind, host: Position) -> str | None:
    """Why a kind at the linear that reads what may be cut does not go with the cut."""
    if kind.stage(host) == "heads":
        return (
            f"space.kinds.{removal.name}: heads of {host.name} may go, with which {kind.name} computes; leave "
            f"{host.name} or {cut.name} out of one of them with `on`"
        )
    if removal.aligns and kind.stage(host) in ("input", "mask"):
        return (
            f"space.kinds.{removal.name}.compensate: what stands in for {cut.name} does not merge with {kind.name} at "
            f"{host.name}; set compensate to none, or leave {host.name} out of {kind.name} with `on`"
        )
    width = cut.in_features // cut.units
    parts = [size * width for size in removal.sizes(cut)]
    if pattern := next(filter(None, map(kind.breaks_groups, parts)), ""):
        block = "set block to a multiple of it, or " if hasattr(removal, "block") else ""
        return (
            f"space.kinds.{removal.name}: parts of {parts[0]} inputs of {host.name} may go, which breaks groups of "
            f"{pattern.partition(':')[2]} in {kind.name}'s pattern {pattern}; {block}leave {host.name} out of it with "
            "`on`"
        )
    return None
