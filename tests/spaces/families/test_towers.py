"""CLIP and SigLIP: one name for a position, whether a model has both towers or one."""

from __future__ import annotations

import pytest
import torch
from transformers import (
    CLIPTextModel,
    CLIPVisionModel,
    CLIPVisionModelWithProjection,
    SiglipTextModel,
    SiglipVisionModel,
)

from sparsearch.spaces.backbone.parameters import base_of, head_parameters, layers_of, positions_of
from sparsearch.spaces.coverage import find_unreached
from tests.conftest import make_model

ALONE = {
    "clip": (CLIPTextModel, CLIPVisionModel),
    "siglip": (SiglipTextModel, SiglipVisionModel),
}


@pytest.mark.parametrize("family", ["clip", "siglip"])
def test_positions_have_one_name_in_a_tower_and_in_the_whole(family):
    whole = make_model(family)
    names = {p.name: (p.role, p.in_features, p.out_features) for p in positions_of(whole)}
    towers = {}
    sections = whole.config.text_config, whole.config.vision_config
    with torch.device("meta"):
        for tower, section in zip(ALONE[family], sections, strict=True):
            alone = tower(section)
            towers |= {
                p.name: (p.role, p.in_features, p.out_features) for p in positions_of(alone)
            }
    assert names == towers
    assert {"text.layers.1.attn.q", "vision.layers.0.ffn.neurons", "text.norm"} <= names.keys()


@pytest.mark.parametrize("family", ["clip", "siglip"])
def test_a_classifier_has_the_tower_of_images_for_its_backbone(family):
    model, whole = make_model(f"{family}-image"), make_model(family)
    assert base_of(model) is model.vision_model
    assert [name for name, _ in head_parameters(model)] == ["classifier.weight", "classifier.bias"]
    expected = [p.name for p in positions_of(whole) if p.name.startswith("vision.")]
    assert [p.name for p in positions_of(model)] == expected
    assert layers_of(model) is not None and layers_of(whole) is None
    assert base_of(whole) is whole and not list(head_parameters(whole))


def test_a_projection_on_top_is_no_part_of_the_tower():
    with torch.device("meta"):
        model = CLIPVisionModelWithProjection(make_model("clip").config.vision_config)
    assert base_of(model) is model.vision_model
    assert "vision.layers.0.attn.q" in {p.name for p in positions_of(model)}


def test_what_is_pooled_is_named_with_its_reason():
    reasons = {u.module: u.reason for u in find_unreached(make_model("clip"))}
    assert "pooled" in reasons["visual_projection"] and "pooled" in reasons["text_projection"]
    assert "does not read" in reasons["vision_model.post_layernorm"]
    assert any("pooled" in u.reason for u in find_unreached(make_model("siglip-image")))
