"""Checkpoints: the slim model comes back from its folder alone, and a folder that is not whole does not load."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

import sparsearch
from sparsearch.errors import StructureError
from sparsearch.spaces.attachment.attach import attach
from sparsearch.spaces.attachment.attachment import attachment_of
from sparsearch.spaces.backbone.identity import identify
from sparsearch.spaces.backbone.parameters import (
    backbone_parameters,
    base_of,
    count_params,
    positions_of,
)
from sparsearch.spaces.compaction.checkpoint import (
    load_checkpoint,
    save_checkpoint,
    verify_checkpoint,
)
from sparsearch.spaces.compaction.checkpoint_document import read_checkpoint
from sparsearch.spaces.compaction.compact import compact
from sparsearch.spaces.compaction.sparsity import weight_sparsity
from sparsearch.spaces.space import build_space
from sparsearch.spaces.structure import make_structure
from tests.helpers.feed_forward import WIDTH

BARE = ("llama", "t5")
"""Families whose linears have no biases."""


def kinds_of(family, adapters):
    kinds = {
        "lora": {"max_rank": 2},
        "bitfit": {"on": ["*.q", "*.up"] if family in BARE else ["*"]},
        "lnfit": {},
        "heads": {},
        "neurons": {"block": 24},
    }
    return kinds | ({"adapter": {"bottleneck": 3}} if adapters else {})


def chosen_of(space):
    """The second head and the last block of neurons everywhere, and half of the rest."""
    for number, c in enumerate(space.candidates):
        if (c.kind, c.which) in (("heads", (1,)), ("neurons", (3,))) or not c.which and number % 2:
            yield c


@pytest.fixture
def slimmed(build, randomise):
    """A trained tiny model with everything that a checkpoint can hold, made slim; and its structure."""

    def make(family, adapters=True, seed=0):
        model = build(family, seed=seed, **{WIDTH.get(family, "intermediate_size"): 96})
        randomise(model)
        space = build_space(model, kinds=kinds_of(family, adapters))
        structure = make_structure(space, chosen_of(space), identify(model), "classification")
        attach(model, structure)
        randomise(model)
        return compact(model, structure), structure

    return make


@pytest.fixture
def written(slimmed, tmp_path):
    """A folder with the checkpoint of a BERT with adapters."""
    model, structure = slimmed("bert")
    save_checkpoint(model, structure, tmp_path)
    return tmp_path


def logits(model, inputs):
    with torch.no_grad():
        return model.eval()(**inputs).logits


@pytest.mark.parametrize("adapters", [False, True], ids=["merged", "adapters"])
def test_the_model_comes_back_bit_identical(slimmed, family, adapters, inputs, tmp_path):
    model, structure = slimmed(family, adapters)
    expected = logits(model, inputs)
    random = torch.random.get_rng_state()
    checkpoint = save_checkpoint(model, structure, tmp_path, inference_flops_ratio=0.75)
    again = load_checkpoint(tmp_path)
    assert torch.equal(torch.random.get_rng_state(), random)
    assert torch.equal(logits(again, inputs), expected) and not again.training
    assert {n: p.shape for n, p in again.named_parameters()} == {
        n: p.shape for n, p in model.named_parameters()
    }
    assert (attachment_of(again) is not None) is adapters
    assert checkpoint == read_checkpoint(tmp_path) and not checkpoint.plain
    assert bool(checkpoint.added_biases) is (family in BARE)
    costs = checkpoint.costs
    assert costs.inference_flops_ratio == 0.75 and costs.weight_sparsity == 0.0
    assert costs.backbone_params == structure.backbone.params > costs.slim_params
    assert costs.slim_params == count_params(model) == count_params(again)
    whole = sum(p.numel() for p in model.parameters())
    assert costs.slim_params + costs.attached_params + costs.head_params == whole
    kept = {n: len(units) for n, units in checkpoint.kept.items()}
    assert kept == {p.name: p.units for p in positions_of(again) if p.units}


def test_kept_units_are_numbered_as_in_the_whole_backbone(written):
    checkpoint = read_checkpoint(written)
    assert checkpoint.kept["layers.1.attn.heads"] == (0, 2, 3)
    assert checkpoint.kept["layers.1.ffn.neurons"] == tuple(range(72))


def test_it_loads_in_a_new_process(slimmed, inputs, tmp_path):
    model, structure = slimmed("t5")
    save_checkpoint(model, structure, tmp_path)
    save_file({**inputs, "logits": logits(model, inputs)}, tmp_path / "expected.safetensors")
    code = (
        "import sys, torch, sparsearch; from safetensors.torch import load_file\n"
        "inputs = load_file(sys.argv[1] + '/expected.safetensors')\n"
        "expected = inputs.pop('logits')\n"
        "model = sparsearch.load_checkpoint(sys.argv[1])\n"
        "with torch.no_grad(): print(torch.equal(model(**inputs).logits, expected))\n"
    )
    command = [sys.executable, "-W", "ignore", "-c", code, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stdout.strip() == "True", done.stderr


def test_half_precision_stays(slimmed, inputs, tmp_path):
    model, structure = slimmed("gpt2", False)
    save_checkpoint(model.bfloat16(), structure, tmp_path)
    again = load_checkpoint(tmp_path)
    assert {p.dtype for p in again.parameters()} == {torch.bfloat16}
    assert torch.equal(logits(again, inputs), logits(model, inputs))


def test_what_stays_attached_trains_on(written, inputs):
    model = load_checkpoint(written)
    model(**inputs).logits.square().sum().backward()
    assert all(p.grad is not None for p in attachment_of(model).parameters())
    assert not any(p.requires_grad for _, p in backbone_parameters(model))


def test_zeros_are_counted_in_the_linears(build):
    model = build("bert")
    assert weight_sparsity(model) == 0.0
    layer = base_of(model).encoder.layer[0]
    with torch.no_grad():
        layer.attention.self.query.weight.zero_()
        layer.attention.self.query.bias.zero_()
    assert weight_sparsity(model) == 32 * 32 / (2 * (4 * 32 * 32 + 2 * 32 * 64))


def test_a_structure_is_refused_on_the_slim_backbone(written, slimmed):
    model = load_checkpoint(written)
    _, structure = slimmed("bert")
    with pytest.raises(StructureError) as caught:
        attach(sparsearch.detach(model), structure)
    for digest in (
        structure.backbone.weight_fingerprint,
        read_checkpoint(written).weight_fingerprint,
    ):
        assert digest[:12] in str(caught.value)
    with pytest.raises(StructureError, match="cannot read a structure"):
        attach(model, written)  # nothing in it could be loaded into another model


def test_other_weights_are_told_by_their_fingerprint(written, slimmed):
    verify_checkpoint(load_checkpoint(written), written)
    other, _ = slimmed("bert", seed=1)
    with pytest.raises(StructureError) as caught:
        verify_checkpoint(other, written)
    expected, found = (
        read_checkpoint(written).weight_fingerprint,
        identify(other).weight_fingerprint,
    )
    assert expected[:12] in str(caught.value) and found[:12] in str(caught.value)


def test_damaged_weights_are_refused(written):
    file = written / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(StructureError, match=r"model\.safetensors is damaged .* SHA-256"):
        load_checkpoint(written)
    file.unlink()
    with pytest.raises(StructureError, match="cannot read .*model.safetensors"):
        load_checkpoint(written)


def edit(folder, **changes):
    file = folder / "checkpoint.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_weights_of_another_checkpoint_are_refused_even_with_their_checksum(
    written, slimmed, tmp_path
):
    other, structure = slimmed("bert", seed=1)
    (tmp_path / "other").mkdir()
    checkpoint = save_checkpoint(other, structure, tmp_path / "other")
    (tmp_path / "other" / "model.safetensors").replace(written / "model.safetensors")
    with pytest.raises(StructureError, match="SHA-256"):
        load_checkpoint(written)
    edit(written, sha256=checkpoint.sha256)
    with pytest.raises(StructureError, match=checkpoint.weight_fingerprint[:12]):
        load_checkpoint(written)


def test_truncated_weights_with_their_checksum_are_refused(written):
    import hashlib

    file = written / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    edit(written, sha256=hashlib.sha256(file.read_bytes()).hexdigest())
    with pytest.raises(StructureError, match="cannot read"):
        load_checkpoint(written)


def test_missing_tensors_are_refused(written):
    import hashlib

    file = written / "model.safetensors"
    tensors = load_file(file)
    del tensors["classifier.weight"]
    save_file(tensors, file)
    edit(written, sha256=hashlib.sha256(file.read_bytes()).hexdigest())
    with pytest.raises(StructureError, match=r"missing \['classifier.weight'\]"):
        load_checkpoint(written)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schema_version": 2}, "schema_version 2"),
        ({"schema_version": "1"}, "schema_version"),
        ({"surprise": 1}, "surprise"),
        ({"kept": {"layers.0.attn.heads": [0, 9]}}, r"keeps units \[0, 9\]"),
        ({"kept": {"layers.9.attn.heads": [0]}}, "layers.9.attn.heads"),
        ({"kept": {"layers.0.attn.heads": []}}, "less than 1"),
        ({"kept": {}}, "other shape"),
        ({"added_biases": ["bert.encoder.layer.0.output.dense.bias"]}, "no place for"),
        ({"added_biases": ["../../etc/passwd.bias"]}, "no place for"),
        ({"structure": {"schema_version": 1}}, "not a structure file"),
    ],
)
def test_a_document_that_does_not_fit_is_refused(written, changes, message):
    edit(written, **changes)
    with pytest.raises(StructureError, match=message):
        load_checkpoint(written)


def test_a_folder_that_is_no_checkpoint_is_refused(written, tmp_path):
    for folder in (tmp_path / "nowhere", tmp_path.parent):
        with pytest.raises(StructureError, match="cannot read a checkpoint") as caught:
            load_checkpoint(folder)
        assert "--to checkpoint" in caught.value.hint
    good = json.loads((written / "config.json").read_text())
    (written / "config.json").write_text('{"model_type": "mamba"}')
    with pytest.raises(StructureError, match="has no model of family 'mamba'"):
        load_checkpoint(written)
    for text in (
        "null",
        json.dumps(good | {"hidden_act": "?"}),
        json.dumps(good | {"hidden_size": 33}),
    ):
        (written / "config.json").write_text(text)
        with pytest.raises(StructureError, match="the checkpoint's config cannot be used"):
            load_checkpoint(written)
    (written / "config.json").unlink()
    with pytest.raises(StructureError, match="config cannot be used"):
        load_checkpoint(written)
    (written / "checkpoint.json").write_text("{")
    with pytest.raises(StructureError, match="cannot read a checkpoint"):
        load_checkpoint(written)
