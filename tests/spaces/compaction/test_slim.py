"""A slim model computes what the whole one does with the removed units at 0; all in float64."""

from __future__ import annotations

import copy
import dataclasses
from contextlib import contextmanager

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

import sparsearch
from sparsearch.errors import StructureError
from sparsearch.spaces.attachment.attach import attach, attach_modules, detach
from sparsearch.spaces.attachment.attachment import attachment_of
from sparsearch.spaces.backbone.flops import dense_flops_per_token
from sparsearch.spaces.backbone.identity import identify
from sparsearch.spaces.backbone.parameters import base_of, positions_of
from sparsearch.spaces.compaction.compact import slim, units_removed
from sparsearch.spaces.compaction.remove import remove_units
from sparsearch.spaces.families.position import find
from sparsearch.spaces.families.registry import FAMILIES
from sparsearch.spaces.kinds import make_kind
from sparsearch.spaces.kinds.prunable.neurons import LEAST_NEURONS
from sparsearch.spaces.space import build_space
from sparsearch.spaces.structure import make_structure

WIDE = 96
TOLERANCE = 1e-6
WIDTH = {"distilbert": "hidden_dim", "gpt2": "n_inner", "opt": "ffn_dim", "t5": "d_ff"}
VARIANTS = {
    **{name: (name, {}) for name in FAMILIES},
    "deberta-v2-own-positions": ("deberta-v2", {"share_att_key": False}),
    "deberta-v2-convolution": ("deberta-v2", {"conv_kernel_size": 3, "conv_act": "gelu"}),
    "opt-350m": ("opt", {"do_layer_norm_before": False, "word_embed_proj_dim": 16}),
    "t5-gated": ("t5", {"is_gated_act": True, "dense_act_fn": "gelu_new"}),
}


@pytest.fixture
def wide(build, randomise):
    """Builds a model whose feed-forwards have neurons to lose, all weights far from 0."""

    def make(variant, attention="eager", seed=0):
        family, settings = VARIANTS[variant]
        settings = {WIDTH.get(family, "intermediate_size"): WIDE, **settings}
        model = build(family, seed=seed, attention=attention, **settings)
        randomise(model)
        return model.double()

    return make


@pytest.fixture(params=["whole", "padded"])
def batch(request):
    """Rows that end in T5's end of sequence; padded ones have zeros behind it."""
    ids = torch.randint(3, 60, (3, 9), generator=torch.Generator().manual_seed(1))
    lengths = torch.tensor([9, 9, 9] if request.param == "whole" else [9, 6, 4])
    places = torch.arange(9)[None]
    ids[places == lengths[:, None] - 1] = 1
    mask = (places < lengths[:, None]).long()
    return {"input_ids": ids * mask, "attention_mask": mask}


def cuts_of(model):
    return [p for p in positions_of(model) if p.units]


def some_units(model):
    """Some units of every position, others at each."""
    generator = torch.Generator().manual_seed(3)
    removed = {}
    for p in cuts_of(model):
        most = p.units - (1 if p.role == "heads" else LEAST_NEURONS)
        count = 1 + int(torch.randint(most, (1,), generator=generator))
        removed[p.name] = torch.randperm(p.units, generator=generator)[:count].tolist()
    return removed


@contextmanager
def gated(model, removed):
    """The whole model with 0 where a removed unit is read."""

    def close(position):
        columns = torch.ones(position.units, position.in_features // position.units)
        columns[removed[position.name]] = 0
        return lambda module, args: (args[0] * columns.flatten(), *args[1:])

    handles = [
        base_of(model).get_submodule(p.module).register_forward_pre_hook(close(p))
        for p in cuts_of(model)
        if p.name in removed
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def logits(model, batch):
    with torch.no_grad():
        return model(**batch).logits


def furthest(found, expected):
    return float((found - expected).abs().max())


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
    assert slim(model, structure) is model
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
    slim(model, structure)
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
            slim(model, structure)


def test_measured_flops_are_those_of_the_structure(trained, family):
    model, structure = trained(family, "heads", "neurons", "adapter")
    whole = positions_of(model)
    slim(model, structure)
    adapters = sum(c.flops_per_token for c in structure.candidates if c.kind == "adapter")
    for tokens in (1, 128):
        found = dense_flops_per_token(positions_of(model), tokens) + adapters
        assert found == dense_flops_per_token(whole, tokens) + structure.inference_flops(tokens)


def test_adapters_on_a_slim_model_train_and_come_off(trained, batch):
    model, structure = trained("deberta-v2", "heads", "neurons", "adapter")
    slim(model, structure)
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
    assert furthest(logits(slim(model, structure, attached=False), batch), expected) < TOLERANCE
    assert attachment_of(model) is None
    flags = {n: p.requires_grad for n, p in model.named_parameters()}
    assert all(flags.values())


def test_a_plain_model_that_cannot_be_cut_is_left_alone(build):
    model = build("bert")
    structure = structure_of(model, {"heads": {}, "neurons": {"block": 11}})
    with pytest.raises(StructureError, match="11 neurons cannot be cut .* of 64, 64 stay"):
        slim(model, structure, attached=False)
    assert attachment_of(model) is None
    assert find(positions_of(model), "layers.0.attn.heads").units == 4


def test_merging_before_changes_nothing(trained, batch):
    model, structure = trained("bert", "heads", "neurons", "adapter")
    twin = copy.deepcopy(model)
    slim(model, structure)
    assert torch.equal(
        logits(slim(sparsearch.merge(twin), structure), batch), logits(model, batch)
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
            slim(model, wrong)
    with pytest.raises(StructureError, match="they differ in") as caught:
        slim(wide("bert"), other)
    assert "attach(model, structure)" in caught.value.hint
    with pytest.raises(StructureError, match="does not only cut: it has lora"):
        slim(wide("bert"), other, attached=False)
    assert all(torch.equal(t, state[n]) for n, t in model.state_dict().items())


def test_what_cannot_be_merged_leaves_the_model_as_it_is(wide, batch):
    model = wide("llama")
    structure = structure_of(model, {"bitfit": {}, "heads": {}})
    attach(model, structure)
    before, shapes = logits(model, batch), [p.shape for p in model.parameters()]
    with pytest.raises(StructureError, match="has no bias"):
        slim(model, structure)
    assert torch.equal(logits(model, batch), before)
    assert [p.shape for p in model.parameters()] == shapes
