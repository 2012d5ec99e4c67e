"""Models with units to lose, and the whole model with 0 where a unit is removed."""

from __future__ import annotations

from contextlib import contextmanager

import torch

from sparsearch.spaces.backbone.parameters import base_of, positions_of
from sparsearch.spaces.kinds.prunable.neurons import LEAST_NEURONS
from tests.helpers.families import CORE

TOLERANCE = 1e-6
VARIANTS = {
    **{name: (name, {}) for name in CORE},
    "deberta-v2-own-positions": ("deberta-v2", {"share_att_key": False}),
    "deberta-v2-convolution": ("deberta-v2", {"conv_kernel_size": 3, "conv_act": "gelu"}),
    "opt-350m": ("opt", {"do_layer_norm_before": False, "word_embed_proj_dim": 16}),
    "t5-gated": ("t5", {"is_gated_act": True, "dense_act_fn": "gelu_new"}),
}


def cuts_of(model):
    return [p for p in positions_of(model) if p.units]


def some_units(model):
    """Some units of every position, others at each."""
    generator = torch.Generator().manual_seed(3)
    removed = {}
    for p in cuts_of(model):
        most = p.units - (1 if p.role == "heads" else LEAST_NEURONS)
        count = 1 + int(torch.randint(most, (1,), generator=generator))
        removed[p.name] = torch.randperm(p.units, generator=generator)[:count].tolist()
    return removed


@contextmanager
def gated(model, removed):
    """The whole model with 0 where a removed unit is read."""

    def close(position):
        columns = torch.ones(position.units, position.in_features // position.units)
        columns[removed[position.name]] = 0
        return lambda module, args: (args[0] * columns.flatten(), *args[1:])

    handles = [
        base_of(model).get_submodule(p.module).register_forward_pre_hook(close(p))
        for p in cuts_of(model)
        if p.name in removed
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def furthest(found, expected):
    return float((found - expected).abs().max())
