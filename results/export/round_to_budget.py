"""Rounding a trained structure to a budget of stored bytes; nothing is trained again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

import safetensors.torch
from torch import Tensor, nn

from sparsearch.errors import ExportError, InfeasibleError
from sparsearch.results.export.trained import Trained
from sparsearch.results.records import Best
from sparsearch.spaces.attachment.attachment import attachment_of
from sparsearch.spaces.attachment.weights_file import HEAD, values_of
from sparsearch.spaces.backbone.parameters import count_with_pooler, positions_of
from sparsearch.spaces.candidate import Candidate, make_candidate
from sparsearch.spaces.costs import narrowed_positions, recompute_costs
from sparsearch.spaces.families.position import find
from sparsearch.spaces.kinds import Kind
from sparsearch.spaces.kinds.precision import BITS, kind_in_bits
from sparsearch.spaces.kinds.rounding import Rounding, pack_rounded, trained_tensors
from sparsearch.spaces.limits import StoredBytes
from sparsearch.spaces.structure import Structure

__all__ = ["round_to_budget", "rounding_note"]


def round_to_budget(best: Best, weights: bytes, max_bytes: int | str) -> tuple[Best, bytes]:
    """Store the values of a trained structure in fewer bits, until it costs at most so many bytes.

    Step by step those values are rounded further that lose least for each byte that they save: of a unit's tensors, the
    squared error over the squares of the values. So no unit counts as more important than another. Units that need not
    be rounded further stay as they are, to the bit.

    Args:
        best: The trial, as a query gives it.
        weights: Its trained weights, as the store gives them.
        max_bytes: The most that the task may cost to keep, see ``Structure.stored_bytes``: a number, or a share of the
            backbone like "0.01%".

    Returns:
        The trial with the rounded structure, and its weights, as ``export`` takes them. Its scores are still those
        from before: measure what is exported.

    Raises:
        InfeasibleError: If it costs more in the fewest bits too.
        ConfigError: If ``max_bytes`` is no number and no share.
        ExportError: If what is left of the backbone was fine-tuned as a whole.

    Example:
        >>> export(*round_to_budget(best, weights, 817), "spec", "small/")  # doctest: +SKIP
    """
    limit, trained = StoredBytes(), Trained(best.structure, weights)
    asked = limit.asked(max_bytes)
    if trained.whole:
        raise ExportError(
            "what this structure leaves of the backbone was fine-tuned as a whole: there are no values to round",
            "export it without max_bytes, with --to checkpoint",
        )
    model = trained.attached_model()
    most = (
        limit.of_backbone(asked, count_with_pooler(model))
        if isinstance(asked, Fraction)
        else asked
    )
    units = list(_units(trained, model))
    bits = [unit.candidate.bits for unit in units]
    while (found := _in_bits(best.structure, units, bits)).stored_bytes > most:
        steps = [(*step, i) for i, unit in enumerate(units) for step in unit.steps(bits[i])]
        if not steps:
            raise InfeasibleError(
                f"max_bytes {most:,}: this structure costs {found.stored_bytes:,} bytes in the fewest bits too",
                "allow more bytes, or search under max_bytes",
            )
        _, fewer, i = min(steps)
        bits[i] = fewer
    tensors = {n: t for n, t in trained.tensors.items() if n.startswith(HEAD)}
    for unit, own in zip(units, bits, strict=True):
        tensors |= unit.tensors(own)
    packed = safetensors.torch.save(tensors, trained.metadata)
    return replace(best, structure=found, stored_bytes=found.stored_bytes), packed


def rounding_note(before: Best, after: Best) -> str:
    """What a user of the rounded structure should know."""
    now, then = after.structure, before.structure
    if now == then:
        return f"it stores {now.stored_bytes:,} bytes as it is: nothing was rounded"
    bits = Counter(c.bits for c in now.candidates if c.role == "attach")
    counts = ", ".join(f"{bits[b]} in {b}" for b in BITS if bits[b])
    return (
        f"rounded from {then.stored_bytes:,} to {now.stored_bytes:,} stored bytes, units by bits: {counts}; its scores "
        "are those from before, so measure what was exported"
    )


@dataclass(frozen=True)
class _Precision:
    """A unit in so many bits: its kind, what it costs, and the error of its values."""

    kind: Kind
    candidate: Candidate
    error: float


@dataclass(frozen=True)
class _Unit:
    """A trained unit.

    Attributes:
        candidate: What it is.
        values: Those that it trained, by tensor, as it computes with them.
        stored: All of its tensors in the file, without the beginning of their names.
        precisions: What it may become, by bits.
    """

    candidate: Candidate
    values: Mapping[str, Tensor]
    stored: Mapping[str, Tensor]
    precisions: Mapping[int, _Precision]

    def steps(self, bits: int) -> Iterator[tuple[float, int]]:
        """Error for each byte saved, and the bits, of all that costs less than this does in so many bits."""
        now = self.precisions[bits]
        for fewer, then in self.precisions.items():
            saved = now.candidate.bytes - then.candidate.bytes
            if saved > 0:
                yield (then.error - now.error) / saved, fewer

    def tensors(self, bits: int) -> dict[str, Tensor]:
        """What is stored of it in so many bits, by file name."""
        if bits == self.candidate.bits:
            parts = dict(self.stored)
        else:
            own = {*self.values, "codes", "scales"}
            parts = {name: tensor for name, tensor in self.stored.items() if name not in own}
            parts |= pack_rounded([(v, Rounding(bits)) for v in self.values.values()], bits)
        new = self.precisions[bits].candidate
        return {f"{new.position}:{new.kind}.{name}": tensor for name, tensor in parts.items()}


def _units(trained: Trained, model: nn.Module) -> Iterator[_Unit]:
    structure, attachment, values = trained.structure, attachment_of(model), values_of(model)
    assert attachment is not None, "the model of a trained structure has it attached"
    positions = positions_of(model)
    narrowed = narrowed_positions(positions, structure.candidates, trained=True)
    for c, slot in zip(structure.candidates, attachment.slots, strict=True):
        prefix = f"{c.position}:{c.kind}."
        own = {name: values[prefix + name] for name, _ in trained_tensors(slot.unit)}
        precisions = {c.bits: _Precision(slot.kind, c, 0.0)}
        for bits in BITS if c.role == "attach" else ():
            if bits < c.bits:
                kind = kind_in_bits(slot.kind, bits)
                whole = make_candidate(kind, find(positions, c.position), c.size)
                fewer = recompute_costs(whole, kind, narrowed)
                error = sum(_relative_error(v, bits) for v in own.values())
                precisions[bits] = _Precision(kind, fewer, error)
        stored = {
            n.removeprefix(prefix): t for n, t in trained.tensors.items() if n.startswith(prefix)
        }
        yield _Unit(c, own, stored, precisions)


def _relative_error(values: Tensor, bits: int) -> float:
    """Squared error of rounding over the squares of the values; 0 where all are zero."""
    squares = float(values.square().sum())
    return float((Rounding(bits)(values) - values).square().sum()) / squares if squares else 0.0


def _in_bits(structure: Structure, units: Sequence[_Unit], bits: Sequence[int]) -> Structure:
    """The structure with its units in so many bits; where they differ, each choice of a precision is stored too."""
    if [unit.candidate.bits for unit in units] == list(bits):
        return structure
    chosen = [unit.precisions[own] for unit, own in zip(units, bits, strict=True)]
    kinds = {one.kind.name: one.kind for one in chosen}
    precisions = {one.candidate.bits for one in chosen if one.candidate.role == "attach"}
    offered = len(precisions) * max(structure.provenance.offered, len(units))
    return replace(
        structure,
        candidates=tuple(one.candidate for one in chosen),
        kinds=tuple(kinds.values()),
        provenance=replace(structure.provenance, offered=offered),
    )
