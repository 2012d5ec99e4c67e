"""A linear whose weight is masked: it is computed here, with what is added to its weight inside the mask."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from sparsearch.spaces.positions import weight_at
from sparsearch.spaces.slots import Slot
from sparsearch.spaces.units.base import in_type_of
from sparsearch.spaces.units.removal import RemovalUnit
from sparsearch.spaces.units.weight_mask import WeightMaskUnit

__all__ = ["Masked", "leave_out_cuts"]


class Masked:
    """y = x (M * (W + dW))^T + b in a linear's stead; slices of a fused projection have masks of their own.

    Args:
        module: The linear.
        masks: Masks of its slices.
        inside: Parallel units of the masked slices whose changes are ones of the weight, dW.
    """

    def __init__(self, module: nn.Module, masks: Sequence[Slot], inside: Sequence[Slot]) -> None:
        self.module = module
        self.masks = sorted(masks, key=lambda slot: slot.start)
        self.inside = inside
        module.forward = self.forward

    def forward(self, x: Tensor) -> Tensor:
        """The linear."""
        with torch.autocast(x.device.type, enabled=False):
            weight = self._weight()
        bias = getattr(self.module, "bias", None)
        if bias is not None:
            bias = in_type_of(x, bias)
        return nn.functional.linear(x, in_type_of(x, weight), bias)

    def _weight(self) -> Tensor:
        """The weight that is used, (out, in), of all slices together."""
        own = self._wide()
        pieces, at = [], 0
        for slot in self.masks:
            pieces += [own[at : slot.start], self.used(slot)]
            at = slot.start + slot.width
        pieces.append(own[at:])
        present = [piece for piece in pieces if len(piece)]
        return present[0] if len(present) == 1 else torch.cat(present)

    def _wide(self) -> Tensor:
        """The module's own weight as (out, in), in float32 or wider."""
        weight = self.module.get_parameter("weight")
        rows = weight.T if isinstance(self.module, Conv1D) else weight
        return rows.to(torch.promote_types(weight.dtype, torch.float32))

    def used(self, slot: Slot) -> Tensor:
        """M * (W + dW) of one mask's slice, (out, in)."""
        changed = self.changed(slot)
        if slot.idle:
            return changed
        unit = slot.unit
        assert isinstance(unit, WeightMaskUnit), "only masks take over a linear"
        if slot.gate is None:
            return unit.masked(changed)
        return unit.faded(changed, slot.gate, weight_at(slot.position, self.module))

    def changed(self, slot: Slot) -> Tensor:
        """W + dW of one mask's slice, (out, in), in float32 or wider."""
        own = weight_at(slot.position, self.module)
        weight = own.to(torch.promote_types(own.dtype, torch.float32))
        for other in self.inside:
            if other.position == slot.position and not other.idle:
                weight = weight + other.unit.dense(weight.detach(), other.gate)
        return weight

    @torch.no_grad()
    def advance(self, step: int, steps: int) -> None:
        """Tell the masks how far training is."""
        for slot in self.masks:
            assert isinstance(slot.unit, WeightMaskUnit), "only masks take over a linear"
            slot.unit.advance(step, steps, functools.partial(self.changed, slot))

    @property
    def settled(self) -> bool:
        """Whether all masks are final."""
        return all(bool(slot.unit.settled) for slot in self.masks)

    def remove(self) -> None:
        """The module as it was."""
        del self.module.forward


@torch.no_grad()
def leave_out_cuts(slots: Sequence[Slot], modules: Mapping[str, nn.Module]) -> None:
    """Masks prune nothing that is cut anyway: sparsity then is the one that was counted."""
    for slot in slots:
        if not isinstance(slot.unit, WeightMaskUnit):
            continue
        gone, place = torch.zeros_like(slot.unit.mask), slot.position
        for cut in slots:
            if not isinstance(cut.unit, RemovalUnit):
                continue
            features, units = cut.unit.removed.bool(), cut.position.units
            if cut.position.module == place.module:
                gone[:, features] = True
            for feed in cut.position.feeds:
                if (feed.module, feed.start) == (place.module, place.start):
                    gone[features.view(units, -1)[:, 0].repeat_interleave(feed.rows // units)] = (
                        True
                    )
        if gone.any():
            slot.unit.leave_out(gone, weight_at(place, modules[place.module]))
