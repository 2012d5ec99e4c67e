"""A weight that is changed and masked while its module runs: what is added to it is added inside the mask."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from sparsearch.errors import StructureError
from sparsearch.spaces.attachment.attached_unit import AttachedUnit
from sparsearch.spaces.attachment.elsewhere import check_here
from sparsearch.spaces.attachment.substitution import Substitution
from sparsearch.spaces.families.position import Position, by_output, weight_at

__all__ = ["ChangedWeight", "leave_out_cuts"]


class ChangedWeight:
    """M * (W + dW) in the place of a module's weight W: of a linear, a router, or all experts of a layer.

    Each slice of a fused projection, and each expert, is changed and masked by itself.

    Args:
        module: It may do with the weight what it likes.
        masks: Masks of the weight's positions.
        inside: Parallel units of these positions whose changes are ones of the weight, dW.
    """

    def __init__(
        self, module: nn.Module, masks: Sequence[AttachedUnit], inside: Sequence[AttachedUnit]
    ) -> None:
        self.module, self.masks = module, masks
        self.first = (*masks, *inside)[0].position
        self.parameter = self.first.parameter
        self.at: dict[str, list[AttachedUnit]] = {}
        for slot in (*inside, *masks):
            self.at.setdefault(slot.position.name, []).append(slot)
        self.substitution = Substitution(module, self._weight)

    def _weight(self, x: Tensor) -> Mapping[str, Tensor]:
        """The weight that is used, whole, in the module's own form and type; none where nothing runs."""
        changed: dict[int | None, list[Position]] = {}
        for slots in self.at.values():
            if not all(slot.idle for slot in slots):
                place = slots[0].position
                changed.setdefault(place.expert, []).append(place)
        own = self._own()
        if not changed:
            return {}
        with torch.autocast(own.device.type, enabled=False):
            if None in changed:
                return {self.parameter: self._matrix(own, changed[None])}
            matrices = [
                self._matrix(matrix, changed[expert]) if expert in changed else matrix
                for expert, matrix in enumerate(own.unbind())
            ]
            return {self.parameter: torch.stack(matrices)}

    def _matrix(self, own: Tensor, places: Sequence[Position]) -> Tensor:
        """One matrix with what changes at some of its positions, in its own form and type."""
        places = sorted(places, key=lambda place: place.start)
        runs = places[0].runs  # a matrix's slices have equally many, one in each period
        rows = by_output(places[0], self.module, own)
        rows = rows.reshape(runs, -1, rows.shape[1])
        pieces, at = [], 0
        for place in places:
            part = self.used(place).reshape(runs, -1, rows.shape[2])
            pieces += [rows[:, at : place.start], part]
            at = place.start + part.shape[1]
        pieces.append(rows[:, at:])
        present = [piece.to(own.dtype) for piece in pieces if piece.shape[1]]
        used = (present[0] if len(present) == 1 else torch.cat(present, dim=1)).flatten(0, 1)
        return by_output(places[0], self.module, used)

    def _own(self) -> Tensor:
        """The module's own weight, also while another stands in its place."""
        weight = self.module._parameters.get(self.parameter)
        what = "which has a mask" if self.masks else "which is changed in its place"
        if weight is None:
            raise StructureError(
                f"the weight at {self.first.name}, {what}, is no parameter any more: a parametrization or "
                "torch.nn.utils.prune stands in its place",
                f"remove_parametrizations(module, {self.parameter!r}) or prune.remove(module, {self.parameter!r}) "
                "first",
            )
        check_here(weight, f"the weight at {self.first.name}, {what},")
        return weight

    def used(self, place: Position) -> Tensor:
        """M * (W + dW) of one position, (out, in)."""
        used = self.changed(place)
        for slot in self.at[place.name]:
            if slot.mask is not None and not slot.idle:
                used = slot.run(used, slot.gate, self._slice(place))
        return used

    def changed(self, place: Position) -> Tensor:
        """W + dW of one position, (out, in), in float32 or wider."""
        own = self._slice(place)
        frozen = own.detach().to(torch.promote_types(own.dtype, torch.float32))
        weight = own.to(frozen.dtype)
        for slot in self.at[place.name]:
            if slot.mask is None and not slot.idle:
                weight = weight + slot.dense(frozen)
        return weight

    def _slice(self, place: Position) -> Tensor:
        """The own weight at one position, (out, in)."""
        return weight_at(place, self.module, self._own())

    @torch.no_grad()
    def advance(self, step: int, steps: int) -> None:
        """Tell the masks how far training is."""
        for slot in self.masks:
            assert slot.mask is not None, "only masks choose weights"
            slot.check_here()
            slot.mask.advance(step, steps, functools.partial(self.changed, slot.position))

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
