"""A tiny model with weight masks, and what of it is masked."""

from __future__ import annotations

from sparsearch.spaces.attachment.attach import attach_modules
from sparsearch.spaces.attachment.attachment import attachment_of
from sparsearch.spaces.backbone.parameters import positions_of
from sparsearch.spaces.families.position import Position, weight_at
from sparsearch.spaces.kinds import make_kind
from sparsearch.spaces.kinds.weight_mask.module import WeightMaskUnit

LORA = make_kind("lora", {"max_rank": 2})
POSITION = Position("layers.0.attn.q", "linear", "q", "q", 0, in_features=32, out_features=32)
INSIDE = [
    LORA,
    make_kind("spectral", {"block": 2, "max_blocks": 3}),
    make_kind("sparse_delta", {"smallest": 4, "factor": 3, "steps": 3}),
]
"""Kinds whose changes are masked with the weight."""
BANDS = 7
"""Does not divide a matrix of the tiny models: 32 x 32, 32 x 64."""


def mask_kind(**options):
    return make_kind("weight_mask", {"rank": 2, "bands": BANDS, **options})


def share_of(weights, size):
    """Weights that a size prunes, rounded up."""
    return -(-size * weights // BANDS)


def linears(model):
    return [p for p in positions_of(model) if p.role == "linear"]


def masked_model(model, kind, size, *others, names=None):
    """A mask of one size, and other kinds, on all linears or some."""
    places = [p for p in linears(model) if names is None or p.name in names]
    units = [(p, kind, size, 1) for p in places]
    units += [(p, k, sum(k.sizes(p)), len(k.sizes(p))) for k in others for p in places]
    return attach_modules(model, [u for u in units if u[1].accepts(u[0])])


def masks_of(model):
    slots = attachment_of(model).slots
    return {s.position.name: s.unit for s in slots if isinstance(s.unit, WeightMaskUnit)}


def weights_at(model):
    return {
        p.name: weight_at(p, model.base_model.get_submodule(p.module)).detach().clone()
        for p in linears(model)
    }
