"""Stored weights that are none: refused before any of them is loaded."""

from __future__ import annotations

import math

import pytest
import torch

from sparsearch.errors import StructureError
from sparsearch.spaces.attachment.attach import attach
from sparsearch.spaces.attachment.weights_file import load_weights, weights_of
from sparsearch.spaces.backbone.identity import identify
from sparsearch.spaces.space import build_space
from sparsearch.spaces.structure import make_structure
from tests.conftest import make_model


@pytest.mark.parametrize("kind", ["lora", "lora@4"])
@pytest.mark.parametrize("damage", [lambda t: t.fill_(math.nan), torch.Tensor.int])
def test_numbers_that_are_not_finite_or_no_fractions_are_refused(kind, damage):
    model = make_model("bert")
    options = {"max_rank": 1} | ({"bits": [4]} if "@" in kind else {})
    space = build_space(model, kinds={"lora": options})
    attach(model, make_structure(space, space.candidates, identify(model), "classification"))
    weights = weights_of(model)
    name = next(n for n, t in weights.items() if "lora" in n and t.is_floating_point())
    before = {n: t.clone() for n, t in model.state_dict().items()}
    with pytest.raises(StructureError, match="not finite, or no fractions"):
        load_weights(model, weights | {name: damage(weights[name].clone())})
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    load_weights(model, weights)
