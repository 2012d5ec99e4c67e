"""A linear whose weight is masked: what is added to the weight is added inside the mask."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from sparsearch.errors import StructureError
from sparsearch.spaces.attachment.attached_unit import AttachedUnit
from sparsearch.spaces.attachment.elsewhere import check_here
from sparsearch.spaces.attachment.substitution import Substitution
from sparsearch.spaces.families.position import weight_at

__all__ = ["MaskedLinear", "leave_out_cuts"]


class MaskedLinear:
    """y = x (M * (W + dW))^T + b of a linear; slices of a fused projection have masks of their own.

    Args:
        module: The linear.
        masks: Masks of its slices.
        inside: Parallel units of the masked slices whose changes are ones of the weight, dW.
    """

    def __init__(
        self, module: nn.Module, masks: Sequence[AttachedUnit], inside: Sequence[AttachedUnit]
    ) -> None:
        self.module = module
        self.masks = sorted(masks, key=lambda slot: slot.start)
        self.inside = inside
        self.substitution = Substitution(module, self._weight)

    def _weight(self, x: Tensor) -> Mapping[str, Tensor]:
        """The weight that is used, of all slices together, in the module's own form and type."""
        own = self._own()
        with torch.autocast(own.device.type, enabled=False):
            runs = self.masks[0].runs  # a module's slices have equally many, one in each period
            rows = own.T if isinstance(self.module, Conv1D) else own
            rows = rows.reshape(runs, -1, rows.shape[1])
            pieces, at = [], 0
            for slot in self.masks:
                part = self.used(slot).reshape(runs, -1, rows.shape[2])
                pieces += [rows[:, at : slot.start], part]
                at = slot.start + part.shape[1]
            pieces.append(rows[:, at:])
            present = [piece.to(own.dtype) for piece in pieces if piece.shape[1]]
            used = (present[0] if len(present) == 1 else torch.cat(present, dim=1)).flatten(0, 1)
        return {"weight": used.T if isinstance(self.module, Conv1D) else used}

    def _own(self) -> Tensor:
        """The module's own weight, also while another stands in its place."""
        name, weight = self.masks[0].position.name, self.module._parameters.get("weight")
        if weight is None:
            raise StructureError(
                f"the weight at {name}, which has a mask, is no parameter any more: a parametrization or "
                "torch.nn.utils.prune stands in its place",
                "remove_parametrizations(module, 'weight') or prune.remove(module, 'weight') first",
            )
        check_here(weight, f"the weight at {name}, which has a mask,")
        return weight

    def used(self, slot: AttachedUnit) -> Tensor:
        """M * (W + dW) of one mask's slice, (out, in)."""
        changed = self.changed(slot)
        if slot.idle:
            return changed
        return slot.run(changed, slot.gate, self._slice(slot))

    def changed(self, slot: AttachedUnit) -> Tensor:
        """W + dW of one mask's slice, (out, in), in float32 or wider."""
        own = self._slice(slot)
        weight = own.to(torch.promote_types(own.dtype, torch.float32))
        for other in self.inside:
            if other.position == slot.position and not other.idle:
                weight = weight + other.dense(weight.detach())
        return weight

    def _slice(self, slot: AttachedUnit) -> Tensor:
        """The part of the own weight below one mask, (out, in)."""
        return weight_at(slot.position, self.module, self._own())

    @torch.no_grad()
    def advance(self, step: int, steps: int) -> None:
        """Tell the masks how far training is."""
        for slot in self.masks:
            assert slot.mask is not None, "only masks choose weights"
            slot.check_here()
            slot.mask.advance(step, steps, functools.partial(self.changed, slot))

    @property
    def settled(self) -> bool:
        """Whether all masks are final."""
        return all(bool(slot.unit.settled) for slot in self.masks)

    def remove(self) -> None:
        """The module as it was."""
        self.substitution.remove()


@torch.no_grad()
def leave_out_cuts(slots: Sequence[AttachedUnit], modules: Mapping[str, nn.Module]) -> None:
    """Masks prune nothing that is cut anyway: sparsity then is the one that was counted."""
    for slot in slots:
        if slot.mask is None:
            continue
        gone, place = torch.zeros_like(slot.mask.mask), slot.position
        for cut in slots:
            if cut.removal is None:
                continue
            features, units = cut.removal.removed.bool(), cut.position.units
            if cut.position.module == place.module:
                gone[:, features] = True
            for feed in cut.position.feeds:
                if (feed.module, feed.start) == (place.module, place.start):
                    gone[features.view(units, -1)[:, 0].repeat_interleave(feed.rows // units)] = (
                        True
                    )
        if gone.any():
            slot.mask.leave_out(gone, weight_at(place, modules[place.module]))
