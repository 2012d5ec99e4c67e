"""Everything that is attached to one model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import Tensor, nn

from sparsearch.spaces.attachment.attached_unit import AttachedUnit
from sparsearch.spaces.attachment.changed_weight import ChangedWeight
from sparsearch.spaces.attachment.hooks import Handle
from sparsearch.spaces.backbone.parameters import ATTACHED
from sparsearch.spaces.structure import Structure

__all__ = ["Attachment", "attachment_of"]


class Attachment(nn.Module):
    """Everything attached to one model.

    Attributes:
        units: ``position/with/slashes:kind`` -> the attached module.
        gate_sizes: Candidates of each unit, in order; a gate vector is split accordingly.
        structure: What ``attach`` attached; None where that is a space, or units were taken off since.
    """

    def __init__(self) -> None:
        super().__init__()
        self.units = nn.ModuleDict()
        self.slots: list[AttachedUnit] = []
        self.gate_sizes: list[int] = []
        self.structure: Structure | None = None
        self.handles: list[Handle] = []
        self.requires_grad_before: dict[str, bool] = {}

    @contextmanager
    def gated(self, z: Tensor) -> Iterator[None]:
        """Multiply each candidate by its gate inside the context; z has one entry per candidate."""
        for slot, gate in zip(self.slots, z.split(self.gate_sizes), strict=True):  # type: ignore[no-untyped-call]
            slot.gate = gate
        try:
            yield
        finally:
            for slot in self.slots:
                slot.gate = None

    def skip(self, idle: Sequence[bool]) -> None:
        """Do not run units all of whose candidates are idle, as if their gates were 0."""
        start = 0
        for slot, size in zip(self.slots, self.gate_sizes, strict=True):
            slot.idle = all(idle[start : start + size])
            start += size

    @property
    def masked(self) -> list[ChangedWeight]:
        """The weights that are masked, and others that are changed in their place."""
        return [handle for handle in self.handles if isinstance(handle, ChangedWeight)]

    @property
    def settled(self) -> bool:
        """Whether everything is in its final form: masks are from a point of training on."""
        return all(masked.settled for masked in self.masked)

    def advance(self, step: int, steps: int) -> None:
        """Tell what is attached that so many optimiser steps of all are done; 0 at the start of training.

        Masks then are dense at first and prune more and more, see ``kinds.weight_mask.cubic``. Where nobody
        tells them, they stay as they are: those of the smallest weights, or the ones that were loaded. A training
        that goes on loads its state, and then tells the step that it is at.

        Raises:
            StructureError: If masks go by saliency, and nobody has said what that is, see ``calibrate``.
        """
        for masked in self.masked:
            masked.advance(step, steps)

    def forward(self) -> None:
        """Attached units run inside the backbone's forward."""
        raise TypeError("call the model, not its attachment")


def attachment_of(model: nn.Module) -> Attachment | None:
    """What is attached to a model, if anything."""
    found = getattr(model, ATTACHED, None)
    return found if isinstance(found, Attachment) else None
