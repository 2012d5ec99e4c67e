"""Places of sparse deltas that are found again in the backbone, and not stored."""

from __future__ import annotations

import json

import pytest
import safetensors.torch
import torch
from safetensors import safe_open
from safetensors.torch import load_file

import sparsearch as ss
from sparsearch.errors import StructureError
from sparsearch.results.export.export import export
from sparsearch.spaces.attachment.attach import attach, detach
from sparsearch.spaces.attachment.attachment import attachment_of
from sparsearch.spaces.attachment.remade import remade_metadata
from sparsearch.spaces.attachment.weights_file import HEAD, load_weights, pack_weights, weights_of
from sparsearch.spaces.backbone.identity import identify
from sparsearch.spaces.backbone.loading import load_model
from sparsearch.spaces.kinds.sparse_delta.spec import SUPPORTS
from sparsearch.spaces.space import build_space
from sparsearch.spaces.structure import Structure, make_structure
from tests.conftest import make_inputs, make_model
from tests.helpers.exported import furthest, logits_of, train_on

REMADE = [support for support in SUPPORTS if support != "gradient"]
OPTIONS = {"smallest": 8, "steps": 2}


def structure_of(model, **options):
    space = build_space(model, kinds={"sparse_delta": OPTIONS | options})
    return make_structure(space, space.candidates[::3], identify(model), "classification")


def places_of(model):
    return [
        [slot.unit.rows.tolist(), slot.unit.cols.tolist()] for slot in attachment_of(model).slots
    ]


@pytest.mark.parametrize("support", REMADE)
@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_values_alone_are_stored_and_compute_the_same_elsewhere(family, support, randomise):
    model, again, inputs = make_model(family), make_model(family), make_inputs()
    structure = structure_of(model, support=support)
    attach(model, structure)
    randomise(model)
    weights = weights_of(model)
    own = {n: t for n, t in weights.items() if not n.startswith(HEAD)}
    assert all(name.endswith(".values") for name in own)
    assert structure.bytes == sum(t.nbytes for t in own.values()) == 4 * structure.trainable_params
    attach(again, structure)
    load_weights(again, weights)
    assert torch.equal(again(**inputs).logits, model(**inputs).logits)


@pytest.mark.parametrize("support", REMADE)
def test_a_backbone_in_half_precision_gives_the_same_places_in_full(support):
    half = make_model("bert").bfloat16()
    full = make_model("bert").bfloat16().float()
    structure = structure_of(half, support=support)
    assert places_of(attach(half, structure)) == places_of(attach(full, structure))
    assert remade_metadata(half) == remade_metadata(full) != {}


def test_weights_that_were_rounded_are_refused_before_places_are_found():
    structure = structure_of(make_model("bert"), support="magnitude")
    with pytest.raises(StructureError, match="belongs to another backbone"):
        attach(make_model("bert").bfloat16(), structure)


def test_places_of_the_task_are_stored(randomise):
    model = make_model("bert")
    structure = structure_of(model, support="gradient")
    attach(model, structure)
    assert structure.bytes == 12 * structure.trainable_params
    assert {n.rpartition(".")[2] for n in weights_of(model) if not n.startswith(HEAD)} == {
        "values", "rows", "cols",
    }  # fmt: skip
    assert remade_metadata(model) == {}


def test_an_earlier_file_keeps_its_costs_its_name_and_its_places():
    model = make_model("bert")
    structure = structure_of(model, support="magnitude", indices="stored")
    attach(model, structure)
    weights = {n: t.flip(0) if n.endswith("rows") else t for n, t in weights_of(model).items()}
    detach(model)
    document = json.loads(structure.to_json())
    assert document["kinds"]["sparse_delta"].pop("indices") == "stored"
    earlier = Structure.from_json(json.dumps(document))
    assert earlier == structure and earlier.bytes == 12 * earlier.trainable_params
    assert earlier.hash == structure.hash == structure_of(model, support="magnitude").hash
    attach(model, earlier)
    load_weights(model, weights)
    kept = weights_of(model)
    assert all(torch.equal(tensor, kept[name]) for name, tensor in weights.items())


@pytest.mark.filterwarnings("ignore")
def test_a_file_whose_places_are_others_is_refused(tiny_folder, randomise, tmp_path):
    case = train_on(tiny_folder, {"sparse_delta": OPTIONS}, randomise, pad=0)
    export(case.best, case.weights, "spec", tmp_path / "spec")
    file = tmp_path / "spec" / "modules.safetensors"
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata()
    model = load_model(str(case.folder), num_labels=3)
    model.config.pad_token_id = 0
    other = {**metadata, "remade": "0" * 16}
    safetensors.torch.save_file(load_file(file), file, other)
    with pytest.raises(StructureError, match="not those that the structure was trained with") as e:
        ss.attach(model, tmp_path / "spec")
    assert metadata["remade"] in e.value.message and attachment_of(model) is None
    with pytest.raises(StructureError, match="not those that the structure was trained with"):
        export(case.best, file.read_bytes(), "spec", tmp_path / "other")
    safetensors.torch.save_file(load_file(file), file, metadata)
    assert furthest(logits_of(ss.attach(model, tmp_path / "spec")), case.logits) < 1e-6


@pytest.mark.filterwarnings("ignore")
def test_rounded_to_a_budget_they_are_still_found_again(tiny_folder, randomise, tmp_path):
    kinds = {"sparse_delta": OPTIONS | {"support": "magnitude"}}
    case = train_on(tiny_folder, kinds, randomise, pad=0)
    before = case.best.structure
    best, weights = ss.round_to_budget(case.best, case.weights, before.stored_bytes // 3)
    report = export(best, weights, "spec", tmp_path / "small")
    tensors = load_file(tmp_path / "small" / "modules.safetensors")
    written = sum(t.nbytes for n, t in tensors.items() if not n.startswith(HEAD))
    assert best.structure.bytes == written < before.bytes / 3 and report.max_difference < 1e-6
    with safe_open(tmp_path / "small" / "modules.safetensors", "pt") as opened:
        assert opened.metadata()["remade"]


def test_a_model_without_such_places_says_nothing_of_them():
    model = make_model("bert")
    assert b'"remade"' not in pack_weights(model, ("a", "b", "c"))
