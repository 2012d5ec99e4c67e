"""Two structures, position by position."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sparsearch.spaces.candidate import Candidate
from sparsearch.spaces.kinds import Kind
from sparsearch.spaces.structure import Structure

__all__ = ["Change", "StructureDifference", "compare_structures"]


@dataclass(frozen=True)
class Change:
    """A position and a kind in which two structures differ.

    Attributes:
        position: Canonical name.
        kind: Name of the kind.
        first: What the first structure has there; None for nothing.
        second: Likewise.
        options: Of the kind's options those that differ: in the first structure, and in the second; None for a default.
    """

    position: str
    kind: str
    first: Candidate | None
    second: Candidate | None
    options: Mapping[str, tuple[Any, Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class StructureDifference:
    """What two structures choose differently.

    Attributes:
        first: The one.
        second: The other.
        same: Candidates that both have.
        changes: In the order of the first one's candidates, then of the second one's.
    """

    first: Structure
    second: Structure
    same: int
    changes: tuple[Change, ...]

    def as_dict(self) -> dict[str, Any]:
        """The JSON object of ``diff``."""
        changes = [
            {
                "position": c.position,
                "kind": c.kind,
                "first": _chosen(c.first),
                "second": _chosen(c.second),
                "options": {name: list(both) for name, both in c.options.items()},
            }
            for c in self.changes
        ]
        hashes = {"first": self.first.hash, "second": self.second.hash}
        return {**hashes, "same": self.same, "changes": changes}


def _chosen(candidate: Candidate | None) -> dict[str, Any] | None:
    if candidate is None:
        return None
    return {"size": candidate.size, "params": candidate.params, "which": list(candidate.which)}


def _differing(one: Kind, other: Kind) -> dict[str, tuple[Any, Any]]:
    """Options in which two kinds of one name differ."""
    first, second = one.set_options, other.set_options
    names = dict.fromkeys([*first, *second])
    return {n: (first.get(n), second.get(n)) for n in names if first.get(n) != second.get(n)}


def compare_structures(first: Structure, second: Structure) -> StructureDifference:
    """Compare what two structures choose, by position and kind.

    Args:
        first: Any structure.
        second: Any other; it may belong to another backbone, whose positions have the same names.
    """
    ours = {(c.position, c.kind): c for c in first.candidates}
    theirs = {(c.position, c.kind): c for c in second.candidates}
    changes, same = [], 0
    for position, kind in dict.fromkeys([*ours, *theirs]):
        one, other = ours.get((position, kind)), theirs.get((position, kind))
        both = one is not None and other is not None
        options = _differing(first.kind(kind), second.kind(kind)) if both else {}
        if both and _chosen(one) == _chosen(other) and not options:
            same += 1
        else:
            changes.append(Change(position, kind, one, other, options))
    return StructureDifference(first, second, same, tuple(changes))
