"""Merging: the backbone alone computes what backbone and units computed; what cannot be folded changes nothing."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from transformers import AutoModelForSequenceClassification
from transformers.pytorch_utils import Conv1D

import sparsearch
from sparsearch.errors import StructureError
from sparsearch.spaces.attachment.attach import attach_modules, detach
from sparsearch.spaces.attachment.attachment import attachment_of
from sparsearch.spaces.attachment.weights_file import weights_of
from sparsearch.spaces.backbone.parameters import backbone_parameters, positions_of
from sparsearch.spaces.compaction.merge import merge
from sparsearch.spaces.families.position import find, weight_at
from sparsearch.spaces.kinds import KINDS, make_kind
from sparsearch.spaces.kinds.bitfit.module import BitFitUnit
from tests.helpers.logits import logits

OPTIONS = {
    "sparse_delta": {"smallest": 4, "steps": 2},
    "lora": {"max_rank": 3},
    "dora": {"rank": 2},
    "spectral": {"block": 2, "max_blocks": 3},
    "lora_xs": {"smallest": 2, "steps": 2},
    "vera": {"rank": 5},
    "bitfit": {},
    "lnfit": {},
    "ia3": {},
    "weight_mask": {"rank": 2, "bands": 4},
}
MERGEABLE = {name: make_kind(name, options) for name, options in OPTIONS.items()}
KEPT = {
    "adapter": make_kind("adapter", {"bottleneck": 3}),
    "parallel": make_kind("adapter", {"bottleneck": 3, "parallel": True}),
    "low_rank_adapter": make_kind("low_rank_adapter", {"reduction": 8}),
    "compacter": make_kind("compacter", {"bottleneck": 4, "division": 2}),
    "prefix": make_kind("prefix", {"max_length": 2}),
}
INSIDE = ("prefix",)
"""Those that work inside a block, not on its output."""
NO_BIASES = ("llama", "t5")
"""Families whose norms cannot have a bias, and whose linears have none."""
ALLOWED = {torch.float32: 1e-5, torch.float64: 1e-10}


def units_for(model, *kinds):
    """Each kind wherever it can go and be merged: (position, kind, size, gates)."""
    bare = model.config.model_type in NO_BIASES
    return [
        (p, kind, sum(kind.sizes(p)), len(kind.sizes(p)))
        for p in positions_of(model)
        for kind in kinds
        if kind.accepts(p) and not (bare and kind.name == "bitfit" and p.role == "norm")
    ]


def difference(model, expected, inputs):
    """Largest difference of a logit, relative to the largest logit if that is above 1."""
    found = logits(model, inputs)
    assert found.dtype == expected.dtype
    return float((found - expected).abs().max()) / max(1.0, float(expected.abs().max()))


def flags_of(model):
    return {n: p.requires_grad for n, p in model.named_parameters()}


def state_of(model):
    return {n: t.clone() for n, t in model.state_dict().items()}


def same(state, other):
    return state.keys() == other.keys() and all(torch.equal(t, other[n]) for n, t in state.items())


@pytest.fixture
def trained(build, randomise):
    """A tiny model, none of whose weights is 0 or 1, with units that are not the identity."""

    def make(family, *kinds, units=None):
        model = build(family)
        randomise(model)
        flags = flags_of(model)
        attach_modules(model, units_for(model, *kinds) if units is None else units(model))
        randomise(model)
        return model, flags

    return make


def test_the_tables_name_every_kind():
    assert {k for k in KINDS if KINDS[k].mergeable} == MERGEABLE.keys()
    kept = {k for k in KINDS if not KINDS[k].mergeable and KINDS[k].role != "remove"}
    assert kept == {k.name for k in KEPT.values()}


@pytest.mark.parametrize("dtype", ALLOWED, ids=str)
@pytest.mark.parametrize("kinds", [*([k] for k in MERGEABLE), list(MERGEABLE)], ids="-".join)
def test_merged_equals_attached(trained, family, kinds, dtype, inputs):
    model, flags = trained(family, *(MERGEABLE[k] for k in kinds))
    model.to(dtype)
    expected = logits(model, inputs)
    plain = logits(detach(copy.deepcopy(model)), inputs)
    assert merge(model) is model
    # LLaMA and T5 compute their norms in float32 whatever the type of the weights.
    coarse = "lnfit" in kinds and family in NO_BIASES
    allowed = ALLOWED[torch.float32 if coarse else dtype]
    assert difference(model, expected, inputs) < allowed
    assert difference(model, plain, inputs) > 1000 * allowed
    assert attachment_of(model) is None and not hasattr(model, "sparsearch")
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert not any("forward" in vars(m) for m in model.modules())
    after = flags_of(model)
    assert flags.items() <= after.items()
    assert all(n.endswith(".bias") and after[n] for n in after.keys() - flags.keys())


@pytest.mark.parametrize("kept", KEPT)
def test_what_does_not_merge_stays_attached_and_trains_on(trained, family, kept, inputs):
    ia3 = MERGEABLE["ia3"]

    def units(model):
        # A rescaled output of a whole block is refused beside its adapter, see below.
        some = units_for(model, *MERGEABLE.values(), KEPT[kept])
        return [u for u in some if kept in INSIDE or u[1] != ia3 or not u[0].name.endswith(".o")]

    model, flags = trained(family, units=units)
    attachment = attachment_of(model)
    stay = [slot for slot in attachment.slots if not slot.kind.mergeable]
    expected, weights = logits(model, inputs), weights_of(model)
    merge(model)
    assert attachment_of(model) is attachment and attachment.slots == stay
    assert difference(model, expected, inputs) < 1e-5
    left = weights_of(model)
    assert left.keys() == {n for n in weights if KEPT[kept].name in n or n.startswith("head:")}
    assert all(torch.equal(t, weights[n]) for n, t in left.items())
    with attachment.gated(torch.zeros(sum(attachment.gate_sizes))):
        closed = logits(model, inputs)
    model(**inputs).logits.sum().backward()
    assert all(p.grad is not None for p in attachment.parameters())
    assert not any(p.requires_grad for _, p in backbone_parameters(model))
    detach(model)
    assert difference(model, closed, inputs) < 1e-6
    after = flags_of(model)
    assert flags.items() <= after.items() and all(after.values())


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert", "gpt2"])
def test_a_plain_model_loads_the_merged_weights(trained, build, family, inputs, tmp_path):
    model, _ = trained(family, *MERGEABLE.values())
    fresh = build(family, seed=1)
    fresh.load_state_dict(merge(model).state_dict())
    assert torch.equal(logits(fresh, inputs), logits(model, inputs))
    model.save_pretrained(tmp_path)
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    assert torch.equal(logits(again, inputs), logits(model, inputs))


@pytest.mark.parametrize("family", NO_BIASES)
def test_without_shifts_no_bias_is_added(trained, build, family, inputs):
    kinds = [kind for name, kind in MERGEABLE.items() if name != "bitfit"]
    model, _ = trained(family, *kinds)
    fresh = build(family, seed=1)
    fresh.load_state_dict(merge(model).state_dict())
    assert torch.equal(logits(fresh, inputs), logits(model, inputs))


def test_stages_fold_in_the_order_they_run(trained):
    """Down: ((W + BA) x' + b + c) with x' = (1 + s) x. Key: (1 + s) ((W + BA) x + b + c)."""
    kinds = [MERGEABLE[k] for k in ("lora", "bitfit", "ia3")]
    model, _ = trained("bert", *kinds)
    names = ("layers.0.ffn.down", "layers.0.attn.k")
    hosts, expected = {}, {}
    for name in names:
        position = find(positions_of(model), name)
        host = hosts[name] = model.base_model.get_submodule(position.module)
        slots = [s for s in attachment_of(model).slots if s.position == position]
        lora, bitfit, ia3 = (next(s.unit for s in slots if s.kind == kind) for kind in kinds)
        weight = host.weight + lora.scale * lora.B @ lora.A
        bias = host.bias + bitfit.bias
        factor = 1 + ia3.scale
        if name == names[0]:
            expected[name] = weight * factor, bias
        else:
            expected[name] = factor[:, None] * weight, factor * bias
    merge(model)
    for name, (weight, bias) in expected.items():
        assert torch.allclose(hosts[name].weight, weight, atol=1e-6)
        assert torch.allclose(hosts[name].bias, bias, atol=1e-6)


def test_a_slice_of_a_fused_projection_leaves_the_others(trained):
    def only_keys(model):
        return [u for u in units_for(model, *MERGEABLE.values()) if u[0].name == "layers.0.attn.k"]

    model, _ = trained("gpt2", units=only_keys)
    positions = [find(positions_of(model), f"layers.0.attn.{part}") for part in "qkv"]
    host = model.base_model.get_submodule(positions[0].module)
    assert isinstance(host, Conv1D)
    before = [weight_at(p, host).detach().clone() for p in positions], host.bias.detach().clone()
    merge(model)
    same_weight = [
        torch.equal(weight_at(p, host), w) for p, w in zip(positions, before[0], strict=True)
    ]
    assert same_weight == [True, False, True]
    changed = (host.bias != before[1]).nonzero().flatten().tolist()
    assert changed == list(range(32, 64))


@pytest.mark.parametrize("frozen", [True, False])
def test_a_new_bias_trains_if_its_weight_does(build, randomise, frozen, inputs):
    model = build("llama").requires_grad_(not frozen)
    attach_modules(model, units_for(model, MERGEABLE["bitfit"], KEPT["adapter"]))
    randomise(model)
    merge(model)
    bias = model.base_model.layers[0].self_attn.q_proj.bias
    assert not bias.requires_grad
    detach(model)
    assert bias.requires_grad is not frozen


def test_a_layer_norm_without_a_bias_gets_one(build, randomise, inputs):
    model = build("bert")
    model.base_model.embeddings.LayerNorm = nn.LayerNorm(32, bias=False)
    attach_modules(model, units_for(model, MERGEABLE["bitfit"], MERGEABLE["lnfit"]))
    randomise(model)
    expected = logits(model, inputs)
    merge(model)
    assert difference(model, expected, inputs) < 1e-5
    assert model.base_model.embeddings.LayerNorm.bias is not None


def test_half_precision_is_summed_in_float32_and_rounded_once(trained):
    model, _ = trained("llama", *MERGEABLE.values())
    for _, parameter in backbone_parameters(model):
        parameter.data = parameter.data.bfloat16()
    wide = copy.deepcopy(model)
    for _, parameter in backbone_parameters(wide):
        parameter.data = parameter.data.float()
    found, expected = (dict(backbone_parameters(merge(m))) for m in (model, wide))
    assert found.keys() == expected.keys() and any(n.endswith(".bias") for n in found)
    for name, parameter in found.items():
        assert parameter.dtype == torch.bfloat16
        assert torch.equal(parameter, expected[name].bfloat16()), name


def test_a_copy_merges_alone(trained, inputs):
    model, _ = trained("bert", *MERGEABLE.values())
    before, state = logits(model, inputs), state_of(model)
    merged = merge(copy.deepcopy(model))
    assert difference(merged, before, inputs) < 1e-5
    assert same(state, state_of(model)) and torch.equal(logits(model, inputs), before)


def test_where_nothing_is_attached_no_weight_changes(build):
    model = build("bert")
    state, flags = state_of(model), flags_of(model)
    assert sparsearch.merge(model) is model
    attach_modules(model, [])
    assert attachment_of(sparsearch.merge(model)) is None
    assert same(state, state_of(model)) and flags == flags_of(model)


@pytest.fixture
def untouched(inputs):
    """Merging raises, with a message, and leaves everything bit-identical."""

    def check(model, *messages):
        state, flags, before = state_of(model), flags_of(model), logits(model, inputs)
        slots = list(attachment_of(model).slots)
        with pytest.raises(StructureError) as caught:
            merge(model)
        assert all(message in str(caught.value) for message in messages), str(caught.value)
        assert attachment_of(model).slots == slots
        assert same(state, state_of(model)) and flags == flags_of(model)
        assert torch.equal(logits(model, inputs), before)

    return check


@pytest.mark.parametrize(("family", "norm"), [("llama", "LlamaRMSNorm"), ("t5", "T5LayerNorm")])
def test_shifts_of_norms_that_have_no_bias_are_all_named(trained, untouched, family, norm):
    def everywhere(model):
        bitfit = MERGEABLE["bitfit"]
        shifts = [(p, bitfit, 1, 1) for p in positions_of(model) if bitfit.accepts(p)]
        return [*units_for(model, MERGEABLE["lora"]), *shifts]

    model, _ = trained(family, units=everywhere)
    norms = [p.name for p in positions_of(model) if p.role == "norm"]
    untouched(model, *(f"bitfit at {name} ({norm} has no bias)" for name in norms))


@pytest.mark.parametrize("kept", [k for k in KEPT if k not in INSIDE])
def test_a_rescaled_output_that_an_adapter_works_on_is_refused(trained, untouched, kept):
    model, _ = trained("bert", MERGEABLE["ia3"], MERGEABLE["lora"], KEPT[kept])
    name = KEPT[kept].name
    untouched(
        model,
        f"ia3 at layers.0.attn.o (it rescales the output that {name} at layers.0.attn works on)",
    )


def test_gates_are_refused(trained, untouched):
    model, _ = trained("bert", MERGEABLE["lora"], KEPT["adapter"])
    attachment = attachment_of(model)
    with attachment.gated(torch.full((sum(attachment.gate_sizes),), 0.5)):
        untouched(model, "while gates are set")
    attachment.skip([True] * sum(attachment.gate_sizes))
    untouched(model, "while gates are set")
    attachment.skip([False] * sum(attachment.gate_sizes))
    merge(model)


def test_a_shared_weight_is_refused(build, randomise, untouched):
    model = build("bert")
    first, second = (layer.attention.self for layer in model.base_model.encoder.layer)
    first.query.weight = second.query.weight
    attach_modules(model, units_for(model, MERGEABLE["lora"]))
    randomise(model)
    untouched(
        model,
        "lora at layers.0.attn.q (another module shares",
        "lora at layers.1.attn.q (another module shares",
    )


def test_weights_that_are_not_floating_point_are_refused(trained):
    model, _ = trained("bert", MERGEABLE["lora"])
    query = model.base_model.encoder.layer[0].attention.self.query
    query.weight = nn.Parameter(query.weight.to(torch.int8), requires_grad=False)
    state = state_of(model)
    with pytest.raises(StructureError, match=r"lora at layers\.0\.attn\.q \(the weight is .*int8"):
        merge(model)
    assert same(state, state_of(model))


def test_a_failure_on_the_way_leaves_the_same_function(trained, inputs, monkeypatch):
    model, _ = trained("bert", *MERGEABLE.values())
    expected, calls = logits(model, inputs), []
    fold = BitFitUnit.fold

    def fail_late(self, weight, bias):
        calls.append(self)
        if len(calls) == 5:
            raise torch.OutOfMemoryError("no memory")
        return fold(self, weight, bias)

    monkeypatch.setattr(BitFitUnit, "fold", fail_late)
    before = len(attachment_of(model).slots)
    with pytest.raises(torch.OutOfMemoryError):
        merge(model)
    assert 0 < len(attachment_of(model).slots) < before
    assert difference(model, expected, inputs) < 1e-5
    merge(model)
    assert attachment_of(model) is None
    assert difference(model, expected, inputs) < 1e-5
