"""A structure for the tiny BERT."""

from __future__ import annotations

import pytest

from sparsearch.spaces.backbone.identity import identify
from sparsearch.spaces.space import build_space
from sparsearch.spaces.structure import make_structure


@pytest.fixture
def structure(build):
    model = build("bert")
    space = build_space(model, kinds={"lora": {"max_rank": 1}})
    return make_structure(space, space.candidates, identify(model), "classification")
