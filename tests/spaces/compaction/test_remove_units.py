"""A model with units removed computes what the whole one does with them at 0; all in float64."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

from sparsearch.errors import StructureError
from sparsearch.spaces.attachment.attach import attach_modules, detach
from sparsearch.spaces.backbone.parameters import positions_of
from sparsearch.spaces.compaction.remove import remove_units
from sparsearch.spaces.families.position import find
from sparsearch.spaces.kinds import make_kind
from tests.helpers.cut_model import TOLERANCE, VARIANTS, cuts_of, furthest, gated, some_units
from tests.helpers.logits import logits


def check(model, removed, batch):
    """The model gated, then cut, on one batch."""
    dense = logits(model, batch)
    with gated(model, removed):
        expected = logits(model, batch)
    found = logits(remove_units(model, removed), batch)
    assert furthest(found, expected) < TOLERANCE
    assert furthest(found, dense) > 1e-3


@pytest.mark.parametrize(
    ("variant", "attention"),
    [
        (variant, attention)
        for variant, (family, _) in VARIANTS.items()
        for attention in (("eager",) if family == "deberta-v2" else ("eager", "sdpa"))
    ],
)
def test_a_slim_model_equals_the_gated_one(wide, variant, attention, batch):
    model = wide(variant, attention)
    check(model, some_units(model), batch)


@pytest.mark.parametrize("keep", [1, 2, 4, 6])
@pytest.mark.parametrize(
    ("variant", "heads"),
    [
        ("bert", "num_attention_heads"),
        ("distilbert", "n_heads"),
        ("gpt2", "n_head"),
        ("t5", "num_heads"),
    ],
)
def test_heads_keep_their_size_where_the_width_left_would_hold_other_ones(
    build, randomise, batch, variant, heads, keep
):
    sizes = {heads: 8, "d_kv": 4} if variant == "t5" else {heads: 8}
    model = build(variant, attention="eager", **sizes).double()
    randomise(model)
    removed = {p.name: list(range(keep, 8)) for p in cuts_of(model) if p.role == "heads"}
    check(model, removed, batch)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize(
    "removed",
    [
        {"encoder.layers.0.attn.heads": [0, 2]},
        {"encoder.layers.1.attn.heads": [3]},
        {"decoder.layers.0.attn.heads": [1]},
        {"decoder.layers.1.attn.heads": [0, 1, 2]},
        {"decoder.layers.0.cross.heads": [2]},
        {"decoder.layers.1.cross.heads": [0, 3]},
        {"encoder.layers.0.attn.heads": [1, 3], "encoder.layers.1.attn.heads": [0]},
        {"decoder.layers.0.cross.heads": [0], "decoder.layers.1.cross.heads": [1, 2]},
    ],
    ids=lambda removed: "+".join(removed),
)
def test_each_layer_of_t5_keeps_its_heads_part_of_the_bias(wide, removed, attention, batch):
    check(wide("t5", attention), removed, batch)


@pytest.mark.parametrize("variant", ["gpt2", "llama", "opt", "t5"])
def test_slim_models_generate_the_same_with_a_cache(wide, randomise, variant, batch):
    config = wide(variant).config
    load = AutoModelForSeq2SeqLM if variant == "t5" else AutoModelForCausalLM
    torch.manual_seed(0)
    model = load.from_config(config).eval()
    randomise(model)
    model.double()
    batch = {name: rows[:1] for name, rows in batch.items()}
    options = {"max_new_tokens": 6, "do_sample": False, "output_logits": True}
    options |= {"return_dict_in_generate": True, "eos_token_id": None}
    removed = some_units(model)
    with gated(model, removed):
        expected = model.generate(**batch, **options)
    found = remove_units(model, removed).generate(**batch, **options)
    assert len(found.logits) == 6
    assert furthest(torch.cat(found.logits), torch.cat(expected.logits)) < TOLERANCE


@pytest.mark.parametrize("variant", VARIANTS)
def test_gradients_are_those_of_the_gated_model(wide, variant, batch):
    model = wide(variant)
    removed = some_units(model)
    with gated(model, removed):
        model(**batch).logits.square().sum().backward()
    gradients = copy.deepcopy(model)  # cut as if they were weights
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            gradients.get_parameter(name).copy_(gradient)
    model.zero_grad()
    remove_units(gradients, removed)
    remove_units(model, removed)(**batch).logits.square().sum().backward()
    for name, parameter in model.named_parameters():
        expected = gradients.get_parameter(name).detach()
        found = 0 if parameter.grad is None else parameter.grad
        assert furthest(found, expected) < TOLERANCE * max(1.0, float(expected.abs().max())), name
    assert sum(p.grad is not None for p in model.parameters()) > 10


@pytest.mark.parametrize("variant", VARIANTS)
def test_exactly_the_units_parameters_go(wide, variant):
    model = wide(variant)
    removed = some_units(model)
    before = sum(p.numel() for p in model.parameters())
    gone = 0
    for p in cuts_of(model):
        fed = sum(f.rows // p.units * (f.in_features + f.has_bias) for f in p.feeds)
        read = p.in_features // p.units * p.out_features
        gone += len(removed[p.name]) * (fed + read)
    remove_units(model, removed)
    assert sum(p.numel() for p in model.parameters()) == before - gone


@pytest.mark.parametrize("variant", VARIANTS)
def test_positions_of_a_slim_model_are_scanned_anew(wide, variant):
    model = wide(variant)
    removed = some_units(model)
    before = {p.name: p for p in positions_of(model)}
    remove_units(model, removed)
    after = {p.name: p for p in positions_of(model)}
    assert after.keys() == before.keys()
    for name, gone in removed.items():
        assert after[name].units == before[name].units - len(gone)


@pytest.mark.parametrize("variant", VARIANTS)
def test_weights_load_into_a_fresh_model_cut_alike(wide, variant, batch):
    model = wide(variant)
    removed = some_units(model)
    state = remove_units(model, removed).state_dict()
    fresh = remove_units(wide(variant, seed=5), removed)
    assert furthest(logits(fresh, batch), logits(model, batch)) > 1e-3
    fresh.load_state_dict(state)
    assert torch.equal(logits(fresh, batch), logits(model, batch))


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_model_without_weights_is_cut_alike(wide, variant):
    model = wide(variant)
    removed = some_units(model)
    with torch.device("meta"):
        skeleton = type(model)(model.config)
    remove_units(model, removed)
    remove_units(skeleton, removed)
    assert all(p.is_meta for p in skeleton.parameters())
    shapes = {n: t.shape for n, t in model.state_dict().items()}
    assert {n: t.shape for n, t in skeleton.state_dict().items()} == shapes
    skeleton.load_state_dict(model.state_dict(), assign=True)


@pytest.mark.parametrize("variant", ["gpt2", "llama", "t5"])
def test_cutting_twice_is_cutting_both_at_once(wide, variant, batch):
    model = wide(variant)
    twin = copy.deepcopy(model)
    neurons = next(p.name for p in cuts_of(model) if p.role == "neurons")
    heads = next(p for p in cuts_of(model) if p.role == "heads")
    remove_units(model, {neurons: [0, 5]})
    remove_units(model, {neurons: [0], heads.name: [0]})
    both = {neurons: [0, 5, 1], heads.name: [0]}
    if heads.units > 2:
        remove_units(model, {heads.name: [1]})
        both[heads.name] = [0, 2]
    remove_units(twin, both)
    assert torch.equal(logits(model, batch), logits(twin, batch))
    assert torch.equal(logits(copy.deepcopy(model), batch), logits(model, batch))


def test_type_and_flags_of_parameters_survive(wide, family):
    model = wide(family).bfloat16()
    for number, parameter in enumerate(model.parameters()):
        parameter.requires_grad_(number % 2 == 0)
    flags = [(n, p.requires_grad) for n, p in model.named_parameters()]
    remove_units(model, some_units(model))
    assert [(n, p.requires_grad) for n, p in model.named_parameters()] == flags
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}


def test_modules_can_be_attached_to_a_slim_model_but_not_cut_under(wide, batch):
    model = wide("bert")
    remove_units(model, some_units(model)).float()
    kind = make_kind("lora", {"max_rank": 2})
    units = [(p, kind, 2, 1) for p in positions_of(model) if kind.accepts(p)]
    before = logits(model, batch)
    attach_modules(model, units)
    assert torch.equal(logits(model, batch), before)
    with pytest.raises(StructureError, match="attached") as caught:
        remove_units(model, {"layers.0.attn.heads": [0]})
    assert "detach" in caught.value.hint
    remove_units(detach(model), {"layers.0.ffn.neurons": []})


@pytest.mark.parametrize(
    ("bad", "message", "hint"),
    [
        ({"layers.1.attn.head": [0]}, "no position 'layers.1.attn.head'", "layers.1.attn.heads"),
        ({"layers.1.attn.q": [0]}, "layers.1.attn.q cannot be cut, it is a linear", ".neurons"),
        ({"layers.1.attn.heads": [4]}, "layers.1.attn.heads has no unit 4", "4 units"),
        ({"layers.1.attn.heads": [-1]}, "has no unit -1", "from 0"),
        ({"layers.1.attn.heads": [2, 2]}, "unit 2 is removed twice", "once"),
        ({"layers.1.attn.heads": [3, 1, 0, 2]}, "removing 4 of 4 units", "at most 3"),
        ({"layers.1.ffn.neurons": list(range(33))}, "33 of 96 units leaves less than 64", "32"),
    ],
)
def test_errors_leave_the_model_as_it_is(wide, bad, message, hint):
    model = wide("bert")
    parameters = dict(model.named_parameters())
    state = {n: t.clone() for n, t in model.state_dict().items()}
    with pytest.raises(StructureError, match=message) as caught:
        remove_units(model, {"layers.0.attn.heads": [0], "layers.0.ffn.neurons": [1], **bad})
    assert hint in caught.value.hint
    assert all(p is parameters[n] for n, p in model.named_parameters())
    assert all(torch.equal(t, state[n]) for n, t in model.state_dict().items())
    assert find(positions_of(model), "layers.0.attn.heads").units == 4


def test_a_narrow_feed_forward_keeps_all_its_neurons(build):
    with pytest.raises(StructureError, match="removing 1 of 64 units leaves less than 64"):
        remove_units(build("bert"), {"layers.0.ffn.neurons": [7]})
