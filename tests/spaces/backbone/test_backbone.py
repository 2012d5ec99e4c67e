"""What belongs to a backbone, where its checkpoint lacks a pooler."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForSequenceClassification, BertForMaskedLM, PreTrainedModel

from sparsearch.errors import StructureError
from sparsearch.spaces.attachment.attach import attach
from sparsearch.spaces.attachment.weights_file import load_weights, weights_of
from sparsearch.spaces.backbone.identity import identify
from sparsearch.spaces.backbone.loading import load_model, skeleton
from sparsearch.spaces.backbone.parameters import head_parameters
from sparsearch.spaces.space import build_space
from sparsearch.spaces.structure import make_structure

POOLER = {"bert.pooler.dense.weight", "bert.pooler.dense.bias"}


@pytest.fixture
def folder(build, tmp_path):
    """A BERT saved with a head for masked tokens: without a pooler."""
    config = build("bert").config
    BertForMaskedLM(config).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_relative_budgets_do_not_hang_on_what_the_checkpoint_lacks(folder):
    spaces = [build_space(m(str(folder)), kinds={"bitfit": {}}) for m in (skeleton, load_model)]
    assert spaces[0].backbone_params == spaces[1].backbone_params


def test_a_new_pooler_trains_and_loads_with_the_head(folder, inputs, randomise, tmp_path):
    model = load_model(str(folder), num_labels=3)
    space = build_space(model, kinds={"bitfit": {"on": ["*.attn.q"]}})
    structure = make_structure(space, space.candidates, identify(model), "classification")
    randomise(attach(model, structure))
    weights, expected = weights_of(model), model(**inputs).logits
    (tmp_path / "structure.json").write_text(structure.to_json())
    save_file(weights, tmp_path / "modules.safetensors")

    def plain():
        return AutoModelForSequenceClassification.from_pretrained(folder, num_labels=3).eval()

    other = attach(plain(), structure)
    assert {n for n, p in head_parameters(other) if p.requires_grad} >= POOLER
    assert torch.equal(attach(plain(), tmp_path)(**inputs).logits, expected)


def test_a_pooler_of_the_checkpoint_is_no_part_of_the_head(build):
    model = build("bert")
    space = build_space(model, kinds={"bitfit": {"on": ["*.attn.q"]}})
    structure = make_structure(space, space.candidates, identify(model), "classification")
    attach(model, structure)
    assert not any(model.get_parameter(name).requires_grad for name in POOLER)
    weights = weights_of(model) | {f"head:{n}": model.get_parameter(n).detach() for n in POOLER}
    with pytest.raises(StructureError, match="unknown .'head:bert.pooler"):
        load_weights(model, weights)


def test_threads_that_load_at_once_leave_transformers_as_it_was(folder):
    """transformers 5.23 replaces methods of its classes while it loads, and threads put replacements back."""
    before = PreTrainedModel.tie_weights, PreTrainedModel.init_weights
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda make: make(str(folder)), [load_model, skeleton] * 8))
    assert (PreTrainedModel.tie_weights, PreTrainedModel.init_weights) == before
