"""A trained model made slim computes the same; all in float64."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch

import sparsearch
from sparsearch.errors import StructureError
from sparsearch.spaces.attachment.attach import attach, detach
from sparsearch.spaces.attachment.attachment import attachment_of
from sparsearch.spaces.backbone.flops import dense_flops_per_token
from sparsearch.spaces.backbone.identity import identify
from sparsearch.spaces.backbone.parameters import base_of, positions_of
from sparsearch.spaces.compaction.compact import compact, units_removed
from sparsearch.spaces.families.position import find
from sparsearch.spaces.space import build_space
from sparsearch.spaces.structure import make_structure
from tests.helpers.cut_model import TOLERANCE, VARIANTS, furthest
from tests.helpers.logits import logits

REMOVED = {"heads": (1,), "neurons": (1, 8)}


def structure_of(model, kinds):
    """The same parts of every head and feed-forward, and half of what can be attached."""
    space = build_space(model, kinds=kinds)
    chosen = [
        c
        for number, c in enumerate(space.candidates)
        if (c.which[0] in REMOVED[c.kind] if c.which else number % 2)
    ]
    return make_structure(space, chosen, identify(model), "classification")


def kinds_for(model, *names):
    """All kinds wherever they merge, and those named."""
    bare = model.config.model_type in ("llama", "t5")
    kinds = {
        "lora": {"max_rank": 2},
        "bitfit": {"on": ["*.q", "*.up"]} if bare else {},
        "lnfit": {},
        "ia3": {} if "adapter" in names else {"on": ["*"]},  # adapters work on some outputs
        "spectral": {"block": 4, "max_blocks": 2},
        "adapter": {"bottleneck": 3},
        "heads": {},
        "neurons": {"block": 11},  # the last block has 8
    }
    merging = [name for name in kinds if name not in ("adapter", "heads", "neurons")]
    return {name: kinds[name] for name in (*merging, *names)}


@pytest.fixture
def trained(wide, randomise):
    """A model with a trained structure attached, and the structure."""

    def make(variant, *kinds, attention="eager"):
        model = wide(variant, attention)
        structure = structure_of(model, kinds_for(model, *kinds))
        attach(model, structure)
        randomise(model)
        return model.double(), structure

    return make


@pytest.mark.parametrize("kinds", [["heads", "neurons"], ["heads", "neurons", "adapter"]], ids=str)
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_trained_model_made_slim_computes_the_same(trained, variant, attention, kinds, batch):
    model, structure = trained(variant, *kinds, attention=attention)
    expected = logits(model, batch)
    positions = {p.name: p for p in positions_of(model)}
    assert compact(model, structure) is model
    assert furthest(logits(model, batch), expected) < TOLERANCE
    for p in positions_of(model):
        whole = positions[p.name].units
        gone = {"heads": 1, "neurons": 11 + 8}.get(p.role, 0)
        assert p.units == whole - gone
    attachment = attachment_of(model)
    left = [] if attachment is None else [slot.kind.name for slot in attachment.slots]
    assert set(left) == {"adapter"} & set(kinds)


@pytest.mark.parametrize("variant", VARIANTS)
def test_what_stands_in_for_a_cut_is_folded_into_its_reader(wide, randomise, variant, batch):
    model = wide(variant)
    kinds = kinds_for(model, "heads", "neurons") | {"ia3": {"on": ["*.q", "*.o", "*.up"]}}
    plain = logits(attach(copy.deepcopy(model), structure_of(model, kinds)), batch)
    for name in ("heads", "neurons"):
        kinds[name] = {**kinds[name], "compensate": "linear"}
    structure = structure_of(model, kinds)
    sparsearch.align(attach(model, structure), losses(model, batch))
    randomise(model)
    model.double()
    expected = logits(model, batch)
    assert furthest(expected, plain) > 1e-3
    readers = [base_of(model).get_submodule(p.module) for p in positions_of(model) if p.units]
    biased = [reader.bias is not None for reader in readers]
    compact(model, structure)
    assert furthest(logits(model, batch), expected) < TOLERANCE
    assert [reader.bias is not None for reader in readers] == biased


def losses(model, batch):
    for seed in range(4):
        ids = torch.randint(3, 60, (16, 9), generator=torch.Generator().manual_seed(seed))
        ids[:, -1] = 1
        yield model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits.square().mean()


def test_a_mask_or_an_input_scale_under_a_stand_in_is_refused(wide, monkeypatch):
    monkeypatch.setattr(
        "sparsearch.spaces.space.conflicts", lambda places: ()
    )  # refused there already
    for kind in ("ia3", "weight_mask"):
        model = wide("bert")
        kinds = {kind: {"on": ["*.ffn.down"]}, "neurons": {"block": 11, "compensate": "linear"}}
        structure = structure_of(model, kinds)
        attach(model, structure)
        with pytest.raises(StructureError, match="what stands in for neurons .* would undo it"):
            compact(model, structure)


def test_measured_flops_are_those_of_the_structure(trained, family):
    model, structure = trained(family, "heads", "neurons", "adapter")
    whole = positions_of(model)
    compact(model, structure)
    adapters = sum(c.flops_per_token for c in structure.candidates if c.kind == "adapter")
    for tokens in (1, 128):
        found = dense_flops_per_token(positions_of(model), tokens) + adapters
        assert found == dense_flops_per_token(whole, tokens) + structure.inference_flops(tokens)


def test_adapters_on_a_slim_model_train_and_come_off(trained, batch):
    model, structure = trained("deberta-v2", "heads", "neurons", "adapter")
    compact(model, structure)
    model(**batch).logits.square().sum().backward()
    assert all(p.grad is not None for p in attachment_of(model).parameters())
    with_adapters = logits(model, batch)
    detach(model)
    assert furthest(logits(model, batch), with_adapters) > 1e-3
    assert all(p.requires_grad for p in model.parameters())


def test_a_plain_model_is_cut_by_a_structure_that_only_cuts(wide, batch):
    model = wide("bert")
    twin = copy.deepcopy(model)
    structure = structure_of(model, {"heads": {}, "neurons": {"block": 11}})
    expected = logits(attach(twin, structure), batch)
    assert furthest(logits(compact(model, structure, attached=False), batch), expected) < TOLERANCE
    assert attachment_of(model) is None
    flags = {n: p.requires_grad for n, p in model.named_parameters()}
    assert all(flags.values())


def test_a_plain_model_that_cannot_be_cut_is_left_alone(build):
    model = build("bert")
    structure = structure_of(model, {"heads": {}, "neurons": {"block": 11}})
    with pytest.raises(StructureError, match="11 neurons cannot be cut .* of 64, 64 stay"):
        compact(model, structure, attached=False)
    assert attachment_of(model) is None
    assert find(positions_of(model), "layers.0.attn.heads").units == 4


def test_merging_before_changes_nothing(trained, batch):
    model, structure = trained("bert", "heads", "neurons", "adapter")
    twin = copy.deepcopy(model)
    compact(model, structure)
    assert torch.equal(
        logits(compact(sparsearch.merge(twin), structure), batch), logits(model, batch)
    )


def test_units_of_blocks_are_counted_one_by_one(wide):
    model = wide("bert")
    structure = structure_of(model, {"heads": {}, "neurons": {"block": 11}})
    removed = units_removed(structure, positions_of(model))
    assert removed["layers.1.attn.heads"] == (1,)
    assert removed["layers.1.ffn.neurons"] == (*range(11, 22), *range(88, 96))


def test_another_structure_than_the_attached_is_refused(trained, wide):
    model, structure = trained("bert", "heads", "neurons")
    other = structure_of(wide("bert"), {"lora": {"max_rank": 2}, "heads": {}})
    cuts = [c for c in structure.candidates if c.kind == "heads"]
    moved = dataclasses.replace(cuts[0], which=(2,))
    moved = tuple(moved if c == cuts[0] else c for c in structure.candidates)
    state = {n: t.clone() for n, t in model.state_dict().items()}
    for wrong, message in (
        (other, "they differ in"),
        (dataclasses.replace(structure, candidates=moved), r"cuts \(1,\) at layers.0.attn.heads"),
    ):
        with pytest.raises(StructureError, match=message):
            compact(model, wrong)
    with pytest.raises(StructureError, match="they differ in") as caught:
        compact(wide("bert"), other)
    assert "attach(model, structure)" in caught.value.hint
    with pytest.raises(StructureError, match="does not only cut: it has lora"):
        compact(wide("bert"), other, attached=False)
    assert all(torch.equal(t, state[n]) for n, t in model.state_dict().items())


def test_what_cannot_be_merged_leaves_the_model_as_it_is(wide, batch):
    model = wide("llama")
    structure = structure_of(model, {"bitfit": {}, "heads": {}})
    attach(model, structure)
    before, shapes = logits(model, batch), [p.shape for p in model.parameters()]
    with pytest.raises(StructureError, match="has no bias"):
        compact(model, structure)
    assert torch.equal(logits(model, batch), before)
    assert [p.shape for p in model.parameters()] == shapes
