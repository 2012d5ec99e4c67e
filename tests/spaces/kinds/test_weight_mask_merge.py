"""What merging and files keep of weight masks, and what bfloat16 rounds."""

from __future__ import annotations

import copy
import json

import pytest
import safetensors.torch
import torch
from torch import nn

import sparsearch
from sparsearch.errors import ExportError
from sparsearch.results.export.export import export, write_spec
from sparsearch.results.records import Best
from sparsearch.search.training.device import frozen_cast_once
from sparsearch.search.training.evaluate import forward
from sparsearch.spaces.attachment.attach import attach, attach_modules, detach
from sparsearch.spaces.attachment.attachment import attachment_of
from sparsearch.spaces.attachment.weights_file import load_weights, weights_of
from sparsearch.spaces.backbone.identity import identify
from sparsearch.spaces.backbone.loading import load_model
from sparsearch.spaces.backbone.parameters import positions_of
from sparsearch.spaces.compaction.merge import merge
from sparsearch.spaces.compaction.sparsity import measured_sparsity
from sparsearch.spaces.families.position import find
from sparsearch.spaces.kinds import make_kind
from sparsearch.spaces.kinds.module_base import Unit
from sparsearch.spaces.space import build_space
from sparsearch.spaces.structure import make_structure
from tests.helpers.logits import logits
from tests.helpers.masked_model import (
    INSIDE,
    LORA,
    POSITION,
    mask_kind,
    masked_model,
    masks_of,
    weights_at,
)


@pytest.mark.parametrize("kind", INSIDE, ids=lambda k: k.name)
def test_any_linear_unit_has_a_dense_change(kind, randomise):
    torch.manual_seed(0)
    sizes = kind.sizes(POSITION)
    unit = kind.build(POSITION, sum(sizes), nn.Linear(32, 32))
    randomise(unit)
    weight = torch.zeros(32, 32)
    for z in (None, torch.rand(len(sizes))):
        assert torch.allclose(Unit.dense(unit, weight, z), unit.dense(weight, z), atol=1e-6)
    assert torch.equal(unit.dense(weight, None), unit.fold(weight, None)[0])


def test_a_slice_of_a_fused_projection_has_its_own_mask(build, inputs, randomise):
    model = build("gpt2")
    names = [f"layers.0.attn.{part}" for part in "qkv"]
    before = weights_at(model)
    attach_modules(
        model,
        [
            (find(positions_of(model), names[0]), LORA, 2, 1),
            (find(positions_of(model), names[1]), LORA, 2, 1),
            (find(positions_of(model), names[1]), mask_kind(), 2, 1),
            (find(positions_of(model), names[2]), mask_kind(), 3, 1),
        ],
    )
    randomise(model)
    expected = logits(model, inputs)
    shares = measured_sparsity(model)
    assert [shares[n] for n in names] == [0.0, 293 / 1024, 439 / 1024]
    plain = logits(detach(copy.deepcopy(model)), inputs)
    assert not torch.allclose(plain, expected, atol=1e-4)
    merge(model)
    assert torch.allclose(logits(model, inputs), expected, atol=1e-6)
    after = weights_at(model)
    assert not torch.equal(after[names[0]], before[names[0]])
    assert torch.equal(after["layers.1.attn.k"], before["layers.1.attn.k"])
    shares = measured_sparsity(model)
    assert [shares[n] for n in names] == [0.0, 293 / 1024, 439 / 1024]


def test_a_training_that_goes_on_keeps_its_schedule(build, randomise):
    """``load_state_dict`` brings back a mask, ``load_weights`` a finished one."""
    model, again = build("bert"), build("bert")
    first, second = (masked_model(m, mask_kind(every=1), 3) for m in (model, again))
    first.advance(0, 10)
    first.advance(4, 10)
    second.advance(0, 10)
    again.load_state_dict(model.state_dict())
    for name, unit in masks_of(again).items():
        assert torch.equal(unit.mask, masks_of(model)[name].mask)
    assert not second.settled
    load_weights(again, weights_of(model))
    assert second.settled


def test_merging_keeps_the_zeros_and_the_logits(build, family, inputs, randomise):
    model = build(family)
    attachment = masked_model(
        model, mask_kind(), 4, *INSIDE, make_kind("ia3", {}), make_kind("bitfit", {})
    )
    randomise(model)
    for step in (0, 9):
        attachment.advance(step, 10)
    masks = {name: unit.mask.clone() for name, unit in masks_of(model).items()}
    expected = logits(model, inputs)
    attached = sparsearch.measured_sparsity(model)
    merge(model)
    scale = max(1.0, float(expected.abs().max()))
    assert float((logits(model, inputs) - expected).abs().max()) / scale < 1e-5
    weights = weights_at(model)
    assert all(torch.equal(weights[n] != 0, masks[n]) for n in masks)
    assert measured_sparsity(model) == attached
    assert not any("forward" in vars(m) for m in model.modules())


def test_masks_come_back_from_a_file(build, inputs, randomise, tmp_path):
    model = build("bert")
    attachment = masked_model(model, mask_kind(), 4, LORA)
    randomise(model)
    for step in (0, 9):
        attachment.advance(step, 10)
    expected = logits(model, inputs)
    weights = weights_of(model)
    stored = weights["layers.0.attn.q:weight_mask.packed"]
    assert stored.dtype == torch.uint8 and stored.nbytes == 128
    safetensors.torch.save_file(weights, tmp_path / "weights.safetensors")
    again = build("bert")
    masked_model(again, mask_kind(), 4, LORA)
    assert not torch.allclose(logits(again, inputs), expected, atol=1e-3)
    load_weights(again, safetensors.torch.load_file(tmp_path / "weights.safetensors"))
    assert torch.equal(logits(again, inputs), expected)
    third = build("bert")
    masked_model(third, mask_kind(), 4, LORA)
    third.load_state_dict(model.state_dict())
    assert torch.equal(logits(third, inputs), expected)


def test_a_spec_holds_the_mask_and_peft_is_refused(build, inputs, randomise, tmp_path):
    folder = tmp_path / "backbone"
    build("bert").save_pretrained(folder)
    model = load_model(str(folder), num_labels=3)
    kinds = {"lora": {"max_rank": 1}, "weight_mask": {"bands": 4}}
    space = build_space(model, kinds=kinds)
    backbone = identify(model, str(folder))
    structure = make_structure(space, space.candidates, backbone, "classification")
    attach(model, structure)
    randomise(model)
    expected = logits(model.eval(), inputs)
    weights = safetensors.torch.save(weights_of(model), {"classes": json.dumps(["a", "b", "c"])})
    write_spec(structure, weights, tmp_path / "spec")
    fresh = attach(load_model(str(folder), num_labels=3), tmp_path / "spec").eval()
    assert torch.equal(logits(fresh, inputs), expected)
    assert set(measured_sparsity(fresh).values()) == {0.75}
    best = Best(
        "s", 0, "s3pet", "accuracy", 0.9, 0.9, structure, structure.trainable_params, 1, 1.0,
        None, 0, str(folder), "t", structure.stored_bytes,
    )  # fmt: skip
    with pytest.raises(
        ExportError, match=r"weight_mask .PEFT does not change .*: layers.0.attn.q"
    ):
        export(best, weights, "peft", tmp_path / "adapter")


def test_bfloat16_rounds_the_sum_alone(build, inputs, randomise):
    model = build("bert", labels=2)
    masked_model(model, mask_kind(), 3, LORA)
    randomise(model)
    expected = forward(model, inputs, "fp32").detach()
    query = model.base_model.encoder.layer[0].attention.self.query
    with frozen_cast_once(model, "bf16"):
        assert query.weight.dtype == torch.float32
        assert model.base_model.pooler.dense.weight.dtype == torch.bfloat16
        found = forward(model, inputs, "bf16")
        found.sum().backward()
    assert torch.allclose(found, expected, rtol=0.05, atol=0.05)
    loras = [s.unit for s in attachment_of(model).slots if s.kind == LORA]
    assert all(torch.isfinite(p.grad).all() and p.grad.abs().sum() for p in loras[0].parameters())


def test_a_model_in_bfloat16_runs(build, inputs):
    model = build("llama").bfloat16()
    attachment = masked_model(model, mask_kind(), 3, LORA)
    model.bfloat16()
    for step in (0, 5, 9):
        attachment.advance(step, 10)
        model(**inputs).logits.sum().backward()
    expected = logits(model, inputs)
    assert expected.dtype == torch.bfloat16
    assert torch.allclose(logits(merge(model), inputs), expected, atol=0.05)
    assert set(measured_sparsity(model).values()) == {220 / 512, 439 / 1024, 878 / 2048}
