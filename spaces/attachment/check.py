"""Whether a structure belongs to a model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from torch import nn

from sparsearch.errors import ConfigError, StructureError
from sparsearch.spaces.backbone.identity import (
    BackboneId,
    hash_settings,
    same_settings,
    same_weights,
    weight_fingerprint,
)
from sparsearch.spaces.backbone.parameters import (
    family_name,
    positions_of,
)
from sparsearch.spaces.backbone.quantised.settings import quantisation_of
from sparsearch.spaces.backbone.state import check_half, check_state
from sparsearch.spaces.candidate import Candidate, make_candidate
from sparsearch.spaces.costs import narrowed_positions, recompute_costs
from sparsearch.spaces.families.position import Position, find
from sparsearch.spaces.kinds import Kind
from sparsearch.spaces.structure import Structure

if TYPE_CHECKING:
    from sparsearch.spaces.attachment.attached_unit import AttachedUnit

__all__ = [
    "check_attached",
    "check_structure",
]


def check_structure(
    model: nn.Module, structure: Structure
) -> list[tuple[Position, Kind, int, int]]:
    """All checks before any change."""
    check_state(model, allow={"bitsandbytes", "dispatched"})
    check_half(model, (c.position for c in structure.candidates), structure.backbone.params)
    positions = positions_of(model)
    _check_backbone(model, structure.backbone)
    kinds = {kind.name: kind for kind in structure.kinds}
    problems = structure.problems()
    for c in structure.candidates:
        if c.kind in kinds:
            problems += _misplaced(c, kinds[c.kind], positions)
    if not problems:
        problems = _mispriced(structure, positions)
    if problems:
        raise StructureError("the structure cannot be attached: " + "; ".join(problems))
    return [(find(positions, c.position), kinds[c.kind], c.size, 1) for c in structure.candidates]


def check_attached(
    slots: Sequence[AttachedUnit], structure: Structure, *, merged: bool = False
) -> None:
    """Whether what is attached is a structure: at its positions, with its options, cutting what it cuts.

    Args:
        slots: What is attached.
        structure: What it should be.
        merged: Whether what merges may be gone already.

    Raises:
        StructureError: If it is not.
    """
    found = {(slot.position.name, slot.kind.name): slot for slot in slots}
    wanted = {(c.position, c.kind): c for c in structure.candidates}
    left = {key for key, c in wanted.items() if merged and not structure.kind(c.kind).mergeable}
    if found.keys() not in (wanted.keys(), left or wanted.keys()):
        position, kind = min(found.keys() ^ wanted.keys())
        raise StructureError(
            f"the structure is not what is attached to the model: they differ in {kind} at {position}",
            "take the structure that was attached, or attach(model, structure) and train it",
        )
    for (position, kind), slot in found.items():
        own, said = slot.kind.set_options, structure.kind(kind).set_options
        if own != said:
            raise StructureError(
                f"the structure is not what is attached to the model: {kind} at {position} has {own}, and the "
                f"structure says {said}",
                "take the structure that was attached",
            )
        which = wanted[position, kind].which
        if slot.removal is not None and slot.removal.which != which:
            raise StructureError(
                f"the model cuts {slot.removal.which} at {position}, the structure {which}",
                "attach the structure that is to be cut",
            )


def _check_backbone(model: nn.Module, expected: BackboneId) -> None:
    """The model must have the structure's backbone: its family, its weights and its settings."""
    family = family_name(model)
    if family != expected.family or not same_weights(model, expected.weight_fingerprint):
        dtype = next(model.parameters()).dtype
        rounded = (
            "" if dtype.itemsize >= 4 else f"; if they were rounded to {dtype}, cast after attach"
        )
        hint = f"load the backbone that the structure names, with its original weights{rounded}"
        if quantisation_of(model) != expected.quantisation:
            hint = f"load the backbone that the structure names {_how(expected)}"
        raise StructureError(
            f"the structure belongs to another backbone: {expected.family} from {expected.path!r} "
            f"(fingerprint {expected.weight_fingerprint[:12]}), the model is {family} "
            f"(fingerprint {weight_fingerprint(model)[:12]})",
            hint,
        )
    if not same_settings(hash_settings(model), expected.config_hash):
        raise StructureError(
            f"the model has the weights of the structure's backbone {expected.path!r}, but its config has other "
            "settings, with which they compute something else",
            "load the model with the config.json of that backbone: heads, activations, epsilons and positions as "
            "they are there",
        )


def _how(expected: BackboneId) -> str:
    """How the structure's backbone is loaded, where the model's bits are others."""
    if expected.quantisation is None:
        return "without quantisation, or search anew on the quantised one"
    settings = ", ".join(f"{name}={value!r}" for name, value in expected.quantisation.items())
    return f"with quantization_config=BitsAndBytesConfig({settings})"


def _misplaced(candidate: Candidate, kind: Kind, positions: Sequence[Position]) -> Iterator[str]:
    """Why a candidate cannot be at its position in its size."""
    name = f"{kind.name} at {candidate.position}"
    try:
        position = find(positions, candidate.position)
        largest = kind.largest(position) if kind.accepts(position) else 0
    except StructureError as error:
        yield f"{name}: {error.message} ({error.hint})"
    except ConfigError as error:
        yield from error.problems
    else:
        if not largest:
            yield f"{kind.name} cannot be attached at {position.name}"
        elif kind.role == "remove" or candidate.which:
            yield from _wrong_cut(candidate, kind, position)
        elif candidate.size > largest:
            yield f"{name} has size {candidate.size}, of at most {largest}"


def _wrong_cut(candidate: Candidate, kind: Kind, position: Position) -> Iterator[str]:
    """What is cut must exist, each part be cut once, and enough be left."""
    sizes, which = kind.sizes(position) if kind.role == "remove" else (), candidate.which
    least = kind.least(position)
    if not which or len(set(which)) < len(which) or not set(range(len(sizes))).issuperset(which):
        yield (
            f"{kind.name} at {position.name}: {list(which)} cannot be cut; its {len(sizes)} parts are "
            "numbered from 0, each is cut at most once"
        )
    elif sum(sizes[i] for i in which) != candidate.size:
        yield f"{candidate.size} {kind.name} cannot be cut at {position.name}: its parts add up to other sizes"
    elif position.units - candidate.size < least:
        yield (
            f"{candidate.size} {kind.name} cannot be cut at {position.name}: of {position.units}, {least} stay"
        )


def _mispriced(structure: Structure, positions: Sequence[Position]) -> list[str]:
    """Candidates that do not cost what the structure says."""
    now, before = (
        narrowed_positions(positions, structure.candidates, trained=t) for t in (True, False)
    )
    problems = []
    for c in structure.candidates:
        kind = structure.kind(c.kind)
        whole = make_candidate(kind, find(positions, c.position), c.size, c.which)
        earlier = make_candidate(kind, find(before, c.position), c.size, c.which)
        # Earlier files count neither what stands in for a cut as read, nor what has no gradient as stored.
        if c not in (recompute_costs(whole, kind, now), earlier):
            problems.append(
                f"{c.kind} of size {c.size} at {c.position} does not cost what the structure says"
            )
    return problems
