from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import jsonschema
import pytest
import torch
from safetensors.torch import save_file

import sparsearch.spaces.structure as structure_module
from sparsearch.errors import StructureError
from sparsearch.spaces.attachment.attach import attach, detach
from sparsearch.spaces.attachment.attachment import attachment_of
from sparsearch.spaces.attachment.weights_file import load_weights, weights_of
from sparsearch.spaces.backbone.identity import (
    FORMS,
    form_of,
    identify,
    same_weights,
    weight_fingerprint,
)
from sparsearch.spaces.backbone.parameters import positions_of
from sparsearch.spaces.candidate import make_candidate
from sparsearch.spaces.families.position import find
from sparsearch.spaces.space import build_space
from sparsearch.spaces.structure import Structure, json_schema, make_structure


@pytest.fixture
def model(build):
    return build("bert")


@pytest.fixture
def structure(model):
    space = build_space(
        model, kinds={"lora": {"max_rank": 3}, "bitfit": {}, "adapter": {"bottleneck": 2}}
    )
    lora = [c for c in space.candidates if c.position == "layers.1.attn.q" and c.kind == "lora"]
    bias = [c for c in space.candidates if c.position == "layers.0.attn.norm"]
    block = [c for c in space.candidates if c.position == "layers.0.ffn"]
    return make_structure(
        space, [*lora[:2], *block, *bias], identify(model, "here"), "classification"
    )


def test_rank_units_become_one_candidate_in_backbone_order(structure):
    assert [(c.position, c.kind, c.size) for c in structure.candidates] == [
        ("layers.0.attn.norm", "bitfit", 1),
        ("layers.0.ffn", "adapter", 2),
        ("layers.1.attn.q", "lora", 2),
    ]
    assert structure.trainable_params == 32 + (2 * 32 * 2 + 2 + 32) + 2 * 64


def test_json_round_trip_keeps_everything(structure):
    again = Structure.from_json(structure.to_json())
    assert again == structure and again.hash == structure.hash
    assert again.kinds == structure.kinds


def test_json_validates_against_the_published_schema(structure):
    folder = Path(structure_module.__file__).parent
    published = json.loads((folder / "structure.schema.json").read_text())
    assert published == json_schema()
    jsonschema.validate(json.loads(structure.to_json()), published)


def test_hash_names_the_content_and_not_its_origin(structure):
    moved = dataclasses.replace(
        structure, backbone=dataclasses.replace(structure.backbone, path="elsewhere")
    )
    assert moved.hash == structure.hash
    smaller = dataclasses.replace(structure, candidates=structure.candidates[:2])
    assert smaller.hash != structure.hash


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(colour="red"), "colour"),
        (lambda d: d["candidates"][0].update(colour="red"), "colour"),
        (lambda d: d.update(schema_version=2), "upgrade sparsearch"),
        (lambda d: d["costs"].update(trainable_params=1), "costs"),
        (lambda d: d["kinds"].update(lora={"rank": 2}), "no option 'rank'"),
        (lambda d: d.pop("backbone"), "backbone"),
        (lambda d: d["candidates"][0].update(params="many"), "integer"),
        (lambda d: d["candidates"].append(d["candidates"][0]), "bitfit at .* is there twice"),
        (lambda d: d["kinds"].pop("adapter"), "adapter at layers.0.ffn is of a kind that"),
        (lambda d: d["candidates"][2].update(size=0), "lora at .* has size 0, below 1"),
    ],
)
def test_malformed_files_are_refused(structure, change, message):
    document = json.loads(structure.to_json())
    change(document)
    with pytest.raises(StructureError, match=message):
        Structure.from_json(json.dumps(document))


@pytest.mark.parametrize("text", ["", "[]", "{", '{"schema_version": "1"}'])
def test_what_is_no_structure_is_refused(text, tmp_path):
    (tmp_path / "structure.json").write_text(text)
    with pytest.raises(StructureError):
        Structure.load(tmp_path)


def test_missing_file_is_a_structure_error(tmp_path):
    with pytest.raises(StructureError, match="cannot read"):
        Structure.load(tmp_path / "nothing")


def test_attach_refuses_another_backbone_and_leaves_it_alone(structure, build):
    other = build("bert", seed=1)
    with pytest.raises(StructureError, match="another backbone"):
        attach(other, structure)
    assert attachment_of(other) is None
    assert all(p.requires_grad for p in other.parameters())


def test_attach_accepts_the_backbone_under_another_head(structure, build):
    other = build("bert", labels=7)
    attach(other, structure)
    assert sum(p.numel() for p in attachment_of(other).parameters()) == structure.trainable_params


def test_attach_refuses_costs_that_are_not_true(structure, model):
    wrong = dataclasses.replace(structure.candidates[0], params=31)
    with pytest.raises(StructureError, match="does not cost"):
        attach(model, dataclasses.replace(structure, candidates=(wrong,)))
    assert attachment_of(model) is None


def test_attach_lists_all_that_cannot_be_and_attaches_nothing(structure, model):
    norm, adapter, lora = structure.candidates
    wrong = (
        norm,
        norm,
        dataclasses.replace(norm, size=2, position="layers.1.attn.norm"),
        dataclasses.replace(adapter, kind="ia3"),
        dataclasses.replace(adapter, position="layers.0.attn.q"),
        dataclasses.replace(lora, size=65),
        dataclasses.replace(lora, position="layers.1.attn.qq"),
    )
    with pytest.raises(StructureError) as caught:
        attach(model, dataclasses.replace(structure, candidates=wrong))
    for problem in (
        "bitfit at layers.0.attn.norm is there twice",
        "bitfit at layers.1.attn.norm has size 2, of at most 1",
        "ia3 at layers.0.ffn is of a kind that `kinds` lacks",
        "adapter cannot be attached at layers.0.attn.q",
        "lora at layers.1.attn.q has size 65, of at most 32",
        "no position 'layers.1.attn.qq'",
    ):
        assert problem in caught.value.message
    assert attachment_of(model) is None


def test_uniform_structures_have_ranks_beyond_a_space(structure, model):
    lora = structure.candidates[2]
    high = make_candidate(structure.kind("lora"), find(positions_of(model), lora.position), 32)
    attach(model, dataclasses.replace(structure, candidates=(high,)))
    assert attachment_of(model).slots[0].unit.A.shape == (32, 32)


def test_a_head_cannot_carry_weights_of_the_backbone(structure, model):
    attach(model, structure)
    name = "bert.embeddings.word_embeddings.weight"
    before = model.get_parameter(name).clone()
    weights = weights_of(model) | {f"head:{name}": torch.zeros_like(before)}
    with pytest.raises(StructureError, match=f"unknown .'head:{name}'"):
        load_weights(model, weights)
    assert torch.equal(model.get_parameter(name), before)


def test_weights_that_are_missing_or_damaged_are_named(structure, model, tmp_path):
    (tmp_path / "structure.json").write_text(structure.to_json())
    with pytest.raises(StructureError, match="has no modules.safetensors"):
        attach(model, tmp_path)
    (tmp_path / "modules.safetensors").write_bytes(b"nonsense")
    with pytest.raises(StructureError, match="cannot read .*modules.safetensors"):
        attach(model, tmp_path)
    assert attachment_of(model) is None
    attach(model, tmp_path / "structure.json")


def test_attaching_twice_is_refused(structure, model):
    attach(model, structure)
    with pytest.raises(StructureError, match="already"):
        attach(model, structure)
    detach(model)
    attach(model, structure)


def test_fingerprint_sees_one_changed_weight(model):
    before = identify(model).weight_fingerprint
    with torch.no_grad():
        model.base_model.encoder.layer[1].output.dense.weight[0, 0] += 1e-3
    assert identify(model).weight_fingerprint != before


def test_fingerprint_sees_every_entry_of_a_wide_matrix_and_is_the_same_in_half_precision(build):
    model = build("bert", hidden_size=64, intermediate_size=128).bfloat16().float()
    weight = model.base_model.encoder.layer[0].intermediate.dense.weight
    before = identify(model).weight_fingerprint
    with torch.no_grad():
        for place in ((3, 17), (127, 63), (64, 1)):
            kept = weight[place].clone()
            weight[place] += 0.25
            assert identify(model).weight_fingerprint != before
            weight[place] = kept
        weight[[5, 6]] = weight[[6, 5]]
        assert identify(model).weight_fingerprint != before
        weight[[5, 6]] = weight[[6, 5]]
    assert identify(model).weight_fingerprint == before
    assert identify(model.bfloat16()).weight_fingerprint == before


@pytest.mark.parametrize("form", FORMS)
def test_structures_with_fingerprints_of_every_form_attach(structure, model, form):
    of_form = weight_fingerprint(model, form)
    assert form_of(of_form) == form and same_weights(model, of_form)
    assert not same_weights(model, of_form[:-1] + ("0" if of_form[-1] != "0" else "1"))
    backbone = dataclasses.replace(structure.backbone, weight_fingerprint=of_form)
    attach(model, dataclasses.replace(structure, backbone=backbone))
    detach(model)
    with torch.no_grad():
        model.bert.encoder.layer[1].output.dense.weight.neg_()
    with pytest.raises(StructureError, match="another backbone"):
        attach(model, dataclasses.replace(structure, backbone=backbone))


def test_a_rounded_model_is_told_to_cast_later(structure, model):
    rounded = model.bfloat16()
    with pytest.raises(StructureError) as caught:
        attach(rounded, structure)
    assert "rounded to torch.bfloat16, cast after attach" in caught.value.hint


def test_a_head_of_another_task_is_left_out_with_a_warning(build, structure):
    first, second = build("bert", labels=5), build("bert", labels=3)
    weights = weights_of(attach(first, structure))
    attach(second, structure)
    before = second.classifier.weight.detach().clone()
    with pytest.warns(UserWarning, match="the stored head does not fit"):
        load_weights(second, weights)
    assert torch.equal(second.classifier.weight, before)


@pytest.mark.parametrize("lost", ["classifier.bias", "classifier.weight"])
def test_a_part_of_a_head_is_refused_as_any_missing_tensor(build, structure, lost, tmp_path):
    model = build("bert")
    weights = weights_of(attach(model, structure))
    del weights[f"head:{lost}"]
    (tmp_path / "structure.json").write_text(structure.to_json())
    save_file(weights, tmp_path / "modules.safetensors")
    fresh = build("bert")
    with pytest.raises(StructureError, match=f"missing .'head:{lost}'"):
        attach(fresh, tmp_path)
    assert attachment_of(fresh) is None


def test_a_part_of_a_head_of_another_task_is_left_out_whole_with_a_warning(build, structure):
    first, second = build("bert", labels=5), build("bert", labels=3)
    weights = weights_of(attach(first, structure))
    del weights["head:classifier.bias"]
    attach(second, structure)
    before = {n: p.clone() for n, p in second.classifier.named_parameters()}
    with pytest.warns(UserWarning, match="the stored head does not fit"):
        load_weights(second, weights)
    assert all(torch.equal(p, before[n]) for n, p in second.classifier.named_parameters())


def test_weights_without_any_head_leave_the_models_with_a_warning(build, structure):
    model = attach(build("bert"), structure)
    weights = {n: t for n, t in weights_of(model).items() if not n.startswith("head:")}
    before = model.classifier.weight.detach().clone()
    with pytest.warns(UserWarning, match="the stored weights hold no head"):
        load_weights(model, weights)
    assert torch.equal(model.classifier.weight, before)
