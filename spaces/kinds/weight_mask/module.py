"""A mask on a weight, and the scores that choose it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from sparsearch.errors import StructureError
from sparsearch.spaces.kinds.module_base import Fold, Unit
from sparsearch.spaces.kinds.weight_mask.masking import (
    GatedMask,
    StraightThrough,
    cubic,
    pack,
    ranks_in,
    smallest,
    unpack,
)
from sparsearch.spaces.values import has_values

if TYPE_CHECKING:
    from sparsearch.spaces.kinds.weight_mask.spec import WeightMask

__all__ = ["WeightMaskUnit"]


class WeightMaskUnit(Unit):
    """A (out, rank), B (rank, in), R (out), C (in); ``packed``, the mask in bits, is what is stored.

    Args:
        weight: (out, in), as pretrained.
        kind: Its options.
        size: Parts of the matrix that are pruned.
        pruned: Weights that are pruned in the end.

    Attributes:
        mask: (out, in) True for what stays.
        factor: (out, in) U of the scores, 1 on average; None where the magnitude alone counts.
        moments: (out + in + 1) Two vectors whose outer product is U, and the scale of scores, all zero until they
            are known; None where the magnitude alone counts. A training that goes on finds them in its checkpoint.
        told: The step that the mask was told of last; None at first, and after another mask was loaded.
        settled: Whether the mask is final. It then is a constant: gradients are plain, scores get none.
    """

    of_training: ClassVar[frozenset[str]] = frozenset({"moments"})

    A: nn.Parameter | None
    B: nn.Parameter | None
    R: nn.Parameter | None
    C: nn.Parameter | None
    mask: Tensor
    packed: Tensor
    factor: Tensor | None
    moments: Tensor | None
    order: Tensor | None
    gone: Tensor | None

    def __init__(self, weight: Tensor, kind: WeightMask, size: int, pruned: int) -> None:
        super().__init__()
        out_features, in_features = weight.shape
        self.kind, self.size, self.pruned = kind, size, pruned
        self.scale = _mean(weight.abs())
        self.settled = True
        self.told: int | None = None
        for name in "ABRC":
            self.register_parameter(name, None)
        if kind.rank:
            self.A = nn.Parameter(torch.randn(out_features, kind.rank) / kind.rank**0.5)
            self.B = nn.Parameter(torch.zeros(kind.rank, in_features))
        if kind.structured:
            self.R = nn.Parameter(torch.zeros(out_features))
            self.C = nn.Parameter(torch.zeros(in_features))
        everything = torch.ones(out_features, in_features, dtype=torch.bool)
        self.register_buffer("mask", everything, persistent=False)
        self.register_buffer("packed", pack(everything))
        self.register_buffer("factor", None, persistent=False)
        known = torch.zeros(out_features + in_features + 1) if kind.aligns else None
        self.register_buffer("moments", known)
        self.register_buffer("order", None, persistent=False)
        self.register_buffer("gone", None, persistent=False)
        self.register_load_state_dict_post_hook(_unpack_loaded)  # type: ignore[no-untyped-call]

    @torch.no_grad()
    def align(self, *basis: Tensor) -> None:
        """Take root mean squares of the outputs' gradients (out) and of the inputs (in), and W (out, in)."""
        gradients, inputs, weight = basis
        assert self.moments is not None, "the kind's option says whether they count"
        self.moments[:-1] = torch.cat([gradients / _mean(gradients), inputs / _mean(inputs)])
        self._take_moments()
        self.moments[-1] = self.scale = _mean(self._sizes(weight))
        self.order = None
        self.renew(weight, self.pruned)

    def _take_moments(self) -> None:
        """U and the scale from what is kept of them."""
        assert self.moments is not None, "asked where they are kept"
        gradients, inputs = self.moments[: len(self.mask)], self.moments[len(self.mask) : -1]
        self.factor = torch.outer(gradients, inputs)
        self.scale = float(self.moments[-1])

    def _sizes(self, weight: Tensor) -> Tensor:
        """U * |W|, in float32 or wider."""
        size = weight.abs().to(torch.promote_types(weight.dtype, torch.float32))
        return size if self.factor is None else size * self.factor.to(size)

    def loaded(self) -> None:
        """The stored mask is the final one."""
        self.unpack_stored()
        self.settled = True

    def unpack_stored(self) -> None:
        """The mask is the stored one, and so is what scores are made of."""
        self.mask, self.told = unpack(self.packed, self.mask.shape), None
        if self.moments is not None and self.moments[-1]:
            self._take_moments()

    @torch.no_grad()
    def scores(self, weight: Tensor) -> Tensor:
        """S for W' (out, in), in float32 or wider."""
        found = self._sizes(weight)
        low_rank, structured = self._alphas()
        if self.A is not None and self.B is not None:
            found = found.addmm(self.A.to(found), self.B.to(found), alpha=low_rank)
        if self.R is not None and self.C is not None:
            found = found + structured * (self.R.to(found)[:, None] + self.C.to(found))
        return found

    def _alphas(self) -> tuple[float, float]:
        """Weights of the learnt scores, on the scale of the first term."""
        return self.scale * self.kind.alpha_low_rank, self.scale * self.kind.alpha_structured

    @torch.no_grad()
    def renew(self, weight: Tensor, count: int) -> None:
        """A new mask for W' (out, in): exactly so many weights are pruned, among those that the pattern prunes."""
        scores = self.scores(weight)
        if self.kind.pattern:
            ranks = ranks_in(scores, self.kind.parts)
            scores = scores.masked_fill(ranks >= self.size, torch.inf)
        if self.gone is not None:
            scores = scores.masked_fill(self.gone, torch.inf)
            count = min(count, int(scores.isfinite().sum()))
        self.mask = ~smallest(scores.flatten(), count).view_as(scores)
        self.packed.copy_(pack(self.mask))

    def leave_out(self, gone: Tensor, weight: Tensor) -> None:
        """Prune the same share of what is left where some weights, (out, in), are gone with a head or a neuron."""
        self.gone = gone
        self.pruned = -(-self.size * int((~gone).sum()) // self.kind.parts)
        self.renew(weight, self.pruned)

    def advance(self, step: int, steps: int, weight: Callable[[], Tensor]) -> None:
        """Renew the mask if it is due after so many steps of all; ``weight`` gives W'.

        The first final mask stays. A mask that was loaded is the one of the step before, or of this one.

        Raises:
            StructureError: If the mask goes by saliency, and nobody has said what that is.
        """
        share = cubic(step, steps)
        if step and share < 1 and self.kind.aligns and self.factor is None:
            raise StructureError(
                f"the mask goes by {self.kind.importance}, and at step {step} what passes its weight is unknown",
                "before a training begins, sparsearch.calibrate(model, losses); before one goes on, load the whole "
                "state of its checkpoint (those of earlier versions lack it: begin anew)",
            )
        before = step - 1 if self.told is None else self.told
        self.told, self.settled = step, share == 1
        if step == 0 or (cubic(before, steps) < 1 if share == 1 else step % self.kind.every == 0):
            self.renew(weight(), int(share * self.pruned))

    def forward(self, x: Tensor, gate: Tensor | None, pretrained: Tensor | None = None) -> Tensor:
        """What is used of W' (out, in): masked, or with gates faded by the order of the pretrained weights."""
        if gate is None:
            return self.masked(x)
        assert pretrained is not None, "gates follow the order of the pretrained weights"
        return self.faded(x, gate, pretrained)

    def masked(self, weight: Tensor) -> Tensor:
        """M * W' for W' (out, in); while the mask still changes, scores learn by the straight-through estimate."""
        if self.settled:
            return weight * self.mask
        factors = [None if f is None else f.to(weight) for f in (self.A, self.B, self.R, self.C)]
        masked: Tensor = StraightThrough.apply(  # type: ignore[no-untyped-call]
            weight, self.mask, self.factor, self._alphas(), *factors
        )
        return masked

    def faded(self, weight: Tensor, gate: Tensor, pretrained: Tensor) -> Tensor:
        """W' (out, in) with each band of the smallest pretrained weights multiplied by one minus its gate."""
        if self.order is None:
            self.order = self._order(pretrained.detach())
        total, n = weight.numel(), len(gate)
        edges = [-(-(self.size * band // n) * total // self.kind.parts) for band in range(n + 1)]
        lengths = [b - a for a, b in zip(edges, [*edges[1:], total], strict=True)]
        faded: Tensor = GatedMask.apply(weight, gate.to(weight), self.order, lengths)  # type: ignore[no-untyped-call]
        return faded

    def _order(self, weight: Tensor) -> Tensor:
        """Indices of the weights from the first that is pruned to the last."""
        size = self._sizes(weight)
        ranks = ranks_in(size, self.kind.parts) if self.kind.pattern else size
        return torch.argsort(ranks.flatten(), stable=True)

    def fold(self, weight: Tensor, bias: Tensor | None) -> Fold:
        """Minus what is pruned: a weight minus itself is exactly zero."""
        return -weight.masked_fill(self.mask, 0), None


def _mean(sizes: Tensor) -> float:
    """Never 0: 1 of a matrix of zeros, and of a shape alone."""
    if not has_values(sizes):
        return 1.0
    return float(sizes.mean(dtype=torch.float64)) or 1.0


def _unpack_loaded(unit: Any, _: object) -> None:
    """After ``load_state_dict``, which also brings back the state of a training that goes on."""
    unit.unpack_stored()
