"""How a model writes travels with its checkpoint: chat models say there at which token an answer ends."""

import pytest
import torch
from transformers import AutoModelForCausalLM, GenerationConfig

from sparsearch.errors import StructureError
from sparsearch.spaces.attachment.attach import attach
from sparsearch.spaces.backbone.identity import identify
from sparsearch.spaces.compaction.checkpoint import load_checkpoint, save_checkpoint
from sparsearch.spaces.compaction.compact import compact
from sparsearch.spaces.space import build_space
from sparsearch.spaces.structure import make_structure
from tests.helpers.language_model import make_language_model


def test_a_checkpoint_writes_as_the_model_did(tmp_path):
    model = make_language_model("llama")
    settings = GenerationConfig(
        eos_token_id=[7, 9], pad_token_id=0, repetition_penalty=1.7, max_new_tokens=12
    )
    model.generation_config = settings
    space = build_space(model, kinds={"lora": {"max_rank": 1}})
    structure = make_structure(space, space.candidates[:3], identify(model), "causal-lm")
    slim = compact(attach(model, structure), structure)
    prompt = torch.tensor([[2, 6, 8]])
    expected = slim.generate(prompt)
    save_checkpoint(slim, structure, tmp_path)
    for loaded in (load_checkpoint(tmp_path), AutoModelForCausalLM.from_pretrained(tmp_path)):
        assert loaded.generation_config.eos_token_id == [7, 9]
        assert torch.equal(loaded.generate(prompt), expected)


def test_settings_that_cannot_be_read_are_named(tmp_path):
    model = make_language_model("llama")
    space = build_space(model, kinds={"lora": {"max_rank": 1}})
    structure = make_structure(space, space.candidates[:1], identify(model), "causal-lm")
    save_checkpoint(compact(attach(model, structure), structure), structure, tmp_path)
    (tmp_path / "generation_config.json").write_text("{")
    with pytest.raises(StructureError, match="generation_config"):
        load_checkpoint(tmp_path)
