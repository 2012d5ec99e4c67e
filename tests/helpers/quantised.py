"""A tiny BERT on disk, wide enough for blocks of 64 weights, and its linears in 8 or 4 bits."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch import nn

from sparsearch.spaces.backbone.identity import identify
from sparsearch.spaces.backbone.loading import load_model, skeleton
from sparsearch.spaces.backbone.quantised.settings import quantise_to
from sparsearch.spaces.space import build_space
from sparsearch.spaces.structure import Structure, make_structure

needs_bitsandbytes = pytest.importorskip(
    "bitsandbytes", reason="pip install 'sparsearch[quantised]'"
)

FITTING = {
    "lora": {"max_rank": 2},
    "dora": {},
    "adapter": {"bottleneck": 4},
    "low_rank_adapter": {},
    "compacter": {"bottleneck": 4},
    "bitfit": {},
    "lnfit": {},
    "ia3": {},
    "vera": {"rank": 4},
    "lora_xs": {},
    "sparse_delta": {},
    "spectral": {"directions": "weight", "block": 4},
}
"""Kinds that go to a quantised backbone, with options under which they do."""


def load_in(folder: Path, bits: int | None, labels: int = 2) -> nn.Module:
    """A saved model with its backbone in so many bits; None for plain weights."""
    quantisation = None if bits is None else quantise_to(bits, skeleton(str(folder)))
    return load_model(str(folder), num_labels=labels, quantisation=quantisation)


def structure_on(model: nn.Module, kind: str, folder: Path = Path()) -> Structure:
    """Every candidate of one kind."""
    space = build_space(model, kinds={kind: FITTING[kind]})
    return make_structure(space, space.candidates, identify(model, str(folder)), "classification")
