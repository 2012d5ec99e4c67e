"""Wide models and batches to cut them on, in float64."""

from __future__ import annotations

import pytest
import torch

from tests.helpers.cut_model import VARIANTS
from tests.helpers.feed_forward import WIDTH

WIDE = 96


@pytest.fixture
def wide(build, randomise):
    """Builds a model whose feed-forwards have neurons to lose, all weights far from 0."""

    def make(variant, attention="eager", seed=0):
        family, settings = VARIANTS[variant]
        settings = {WIDTH.get(family, "intermediate_size"): WIDE, **settings}
        model = build(family, seed=seed, attention=attention, **settings)
        randomise(model)
        return model.double()

    return make


@pytest.fixture(params=["whole", "padded"])
def batch(request):
    """Rows that end in T5's end of sequence; padded ones have zeros behind it."""
    ids = torch.randint(3, 60, (3, 9), generator=torch.Generator().manual_seed(1))
    lengths = torch.tensor([9, 9, 9] if request.param == "whole" else [9, 6, 4])
    places = torch.arange(9)[None]
    ids[places == lengths[:, None] - 1] = 1
    mask = (places < lengths[:, None]).long()
    return {"input_ids": ids * mask, "attention_mask": mask}
