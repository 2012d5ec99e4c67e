"""Parts of a model, and other models than a structure belongs to, are named."""

from __future__ import annotations

import pytest
from torch import nn
from transformers import FunnelConfig, FunnelModel, T5EncoderModel

from sparsearch.errors import ModelStateError, StructureError
from sparsearch.spaces.attachment.attach import attach
from sparsearch.spaces.backbone.identity import identify
from sparsearch.spaces.space import build_space
from sparsearch.spaces.structure import make_structure


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (lambda m: m.bert.encoder, "BertEncoder .*(no config|has no encoder.layer.0)"),
        (lambda m: m.bert.embeddings, "BertEmbeddings is no transformers model"),
        (lambda m: nn.Linear(2, 2), "a Linear is no transformers model"),
    ],
)
def test_a_part_of_a_model_is_named(build, structure, part, message):
    for entry in (lambda m: attach(m, structure), lambda m: build_space(m, kinds={"lora": {}})):
        with pytest.raises(ModelStateError, match=message):
            entry(part(build("bert")))


def test_a_structure_is_of_one_family(structure):
    small = FunnelConfig(d_model=8, n_head=2, d_head=4, d_inner=8, block_sizes=[1], vocab_size=9)
    with pytest.raises(StructureError, match="funnel"):
        attach(FunnelModel(small), structure)


def structures_of_t5(tmp_path, build, patterns=("*",)):
    """Structures of a tiny T5 and of its encoder, with functions that load each."""
    build("t5").save_pretrained(tmp_path / "t5")
    loads = {
        "whole": lambda: type(build("t5")).from_pretrained(tmp_path / "t5"),
        "encoder": lambda: T5EncoderModel.from_pretrained(tmp_path / "t5"),
    }
    structures = {}
    for name, load in loads.items():
        space = build_space(load(), kinds={"lora": {"max_rank": 1, "on": list(patterns)}})
        structures[name] = make_structure(
            space, space.candidates, identify(load()), "classification"
        )
    return loads, structures


@pytest.mark.parametrize("patterns", [("*",), ("encoder.*",)])
def test_half_of_an_encoder_decoder_is_named_both_ways(build, tmp_path, patterns):
    loads, structures = structures_of_t5(tmp_path, build, patterns)
    with pytest.raises(ModelStateError, match="a T5EncoderModel, has no decoder, which"):
        attach(loads["encoder"](), structures["whole"])
    with pytest.raises(ModelStateError, match="belongs to the encoder alone; the model, a T5For"):
        attach(loads["whole"](), structures["encoder"])
    for name, load in loads.items():
        attach(load(), structures[name])


def test_other_weights_are_still_another_backbone(build, tmp_path):
    _, structures = structures_of_t5(tmp_path, build)
    for structure, family in ((structures["whole"], "t5"), (structures["whole"], "bert")):
        with pytest.raises(StructureError, match="belongs to another backbone"):
            attach(build(family, seed=1), structure)
