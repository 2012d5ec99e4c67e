"""Experts kept in one tensor, and routers: positions whose weight is changed while their module runs."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from sparsearch.errors import StructureError
from sparsearch.spaces.attachment.attach import attach_modules, detach
from sparsearch.spaces.backbone.flops import dense_flops_per_token
from sparsearch.spaces.backbone.parameters import base_of, positions_of
from sparsearch.spaces.calibration.calibrate import calibrate
from sparsearch.spaces.compaction.merge import merge
from sparsearch.spaces.compaction.sparsity import count_zeros, measured_sparsity
from sparsearch.spaces.coverage import find_unreached, reach_of
from sparsearch.spaces.families.position import find, matching, weight_at
from sparsearch.spaces.kinds import make_kind
from sparsearch.spaces.space import build_space
from tests.conftest import make_inputs, make_model
from tests.helpers.logits import logits

INPUTS = make_inputs()
LORA = make_kind("lora", {"max_rank": 2})


def attach_at(model, patterns, kind=LORA):
    """The kind where it can go, everything trained away from its initial value."""
    places = [p for p in matching(positions_of(model), patterns) if kind.accepts(p)]
    units = [(p, kind, sum(kind.sizes(p)), len(kind.sizes(p))) for p in places]
    attachment = attach_modules(model, units, train_head=False)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in attachment.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return attachment


@pytest.mark.parametrize("family", ["mixtral", "gpt_oss"])
def test_however_transformers_runs_experts_what_is_attached_runs(family):
    model = make_model(family)
    plain = logits(model, INPUTS)
    attach_at(model, ["*.ffn.experts.*", "*.ffn.router"])
    found = []
    for implementation in ("eager", "batched_mm", "grouped_mm"):
        model.config._experts_implementation = implementation
        found.append(logits(model, INPUTS))
    assert (found[0] - plain).abs().max() > 1e-3
    assert torch.allclose(found[0], found[1], atol=1e-5)
    assert torch.allclose(found[0], found[2], atol=1e-5)


@pytest.mark.parametrize("family", ["mixtral", "gpt_oss"])
def test_a_change_of_one_expert_is_one_of_its_part_of_the_tensor(family):
    model = make_model(family)
    place = find(positions_of(model), "layers.1.ffn.experts.2.up")
    experts = base_of(model).get_submodule(place.module)
    before = {n: p.detach().clone() for n, p in experts.named_parameters()}
    (unit,) = attach_at(model, [place.name]).units.values()
    change = unit.dense(weight_at(place, experts).detach(), None)
    merge(model)
    now = experts.gate_up_proj
    assert torch.allclose(
        weight_at(place, experts) - weight_at(place, experts, before["gate_up_proj"]), change,
        atol=1e-6,
    )  # fmt: skip
    assert int((now != before["gate_up_proj"]).sum()) == change.numel()
    others = {n for n, p in experts.named_parameters() if not torch.equal(p, before[n])}
    assert others == {"gate_up_proj"}


def test_units_that_are_idle_leave_the_weight_alone():
    model = make_model("mixtral")
    plain = logits(model, INPUTS)
    attachment = attach_at(model, ["*.ffn.experts.*"])
    attachment.skip([True] * sum(attachment.gate_sizes))
    assert torch.equal(logits(model, INPUTS), plain)


def test_a_merged_model_is_saved_and_loaded_by_transformers(tmp_path):
    model = make_model("mixtral")
    attach_at(model, ["*.ffn.experts.*", "*.ffn.router"])
    expected = logits(model, INPUTS)
    merge(model).save_pretrained(tmp_path)
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    assert torch.allclose(logits(loaded, INPUTS), expected, atol=1e-5)


def test_directions_at_an_expert_are_those_of_its_gradient():
    model = make_model("qwen3_moe")
    place = find(positions_of(model), "layers.0.ffn.experts.1.down")
    experts = base_of(model).get_submodule(place.module)
    loss = gradient_at(copy.deepcopy(model), place)
    kind = make_kind("spectral", {"block": 2, "max_blocks": 1})
    attachment = attach_modules(model, [(place, kind, 1, 1)], train_head=False)
    (unit,) = attachment.units.values()
    calibrate(model, (model(**INPUTS).logits.square().sum() for _ in range(1)))
    left, _, _ = torch.linalg.svd(loss)
    aligned = (left[:, :2].T @ unit.left.float()).abs()
    assert torch.allclose(aligned.diagonal(), torch.ones(2), atol=0.02)
    with pytest.raises(StructureError, match=r"layers.0.mlp.experts.down_proj is missing"):
        calibrate(model, [], changes={"layers.0.mlp.experts": torch.zeros(1)})
    change = torch.zeros_like(experts.down_proj)
    change[1, 3, 5] = 1.0
    calibrate(model, [], changes={"layers.0.mlp.experts.down_proj": change})
    assert int(unit.left[:, 0].abs().argmax()) == 3 and int(unit.right[0].abs().argmax()) == 5


def gradient_at(model, place):
    """Gradient of the squared logits by the weight at a position."""
    experts = base_of(model).get_submodule(place.module)
    model(**INPUTS).logits.square().sum().backward()
    return weight_at(place, experts, experts.get_parameter(place.parameter).grad)


def test_masks_of_experts_count_as_sparsity():
    model = make_model("mixtral")
    kind = make_kind("weight_mask", {"rank": 0, "structured": False, "bands": 4})
    _, weights = count_zeros(model)
    attach_at(model, ["layers.0.ffn.experts.1.*"], kind)
    zeros, _ = count_zeros(model)
    assert zeros == 3 * 32 * 96 * 3 // 4
    assert weights == 2 * (2 * 32 * 32 + 2 * 16 * 32 + 3 * 3 * 32 * 96)
    assert measured_sparsity(model)["layers.0.ffn.experts.1.up"] == 0.75
    merged = merge(model)
    assert measured_sparsity(merged)["layers.0.ffn.experts.1.up"] == 0.75
    assert measured_sparsity(merged)["layers.0.ffn.experts.2.up"] < 0.01


def test_a_dense_layer_between_layers_of_experts_has_a_dense_layers_positions():
    model = make_model("qwen3_moe", mlp_only_layers=[0])
    names = {p.name for p in positions_of(model)}
    assert {"layers.0.ffn.up", "layers.0.ffn.neurons", "layers.1.ffn.router"} <= names
    assert not {"layers.0.ffn.router", "layers.1.ffn.up", "layers.1.ffn.neurons"} & names
    assert find_unreached(model) == ()
    plain = logits(model, INPUTS)
    attach_at(model, ["*.ffn"], make_kind("adapter", {"bottleneck": 3}))
    assert (logits(model, INPUTS) - plain).abs().max() > 1e-3
    assert torch.equal(logits(detach(model), INPUTS), plain)


def test_a_structure_for_a_model_of_30b_parameters_is_listed_exactly():
    """Qwen3-30B-A3B: 3.3 of its 30.5 billion parameters run on a token, the language head aside."""
    config = AutoConfig.for_model(
        "qwen3_moe", hidden_size=2048, num_hidden_layers=48, num_attention_heads=32,
        num_key_value_heads=4, head_dim=128, intermediate_size=6144, moe_intermediate_size=768,
        num_experts=128, num_experts_per_tok=8, vocab_size=151936, mlp_only_layers=[],
    )  # fmt: skip
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    space = build_space(model, preset="s3pet-m")
    assert len(space.candidates) == 48 * (4 + 1 + 3 * 128 + 4 + 4 + 4 + 2) + 2
    assert find_unreached(model) == ()
    reached = {r.role: r.weights for r in reach_of(space) if r.kind == "lora"}
    matrices = sum(reached.values())
    embeddings, norms = 151936 * 2048, 48 * (2 * 2048 + 2 * 128) + 2048
    assert matrices + embeddings + norms == space.backbone_params
    active = matrices - reached["expert"] * 120 // 128
    attention = 48 * 4 * 128 * 4096
    assert dense_flops_per_token(space.positions, 128) == 2 * active + attention
    (up,) = (c for c in space.candidates if c.position == "layers.9.ffn.experts.77.up")
    assert (up.params, up.flops_per_token) == (2048 + 768, 2 * (2048 + 768) * 8 // 128)


def test_linear_attention_is_fused_as_its_layer_takes_it_apart():
    """Of Qwen3-Next: queries, keys, values, output gates, and the rates of writing and of forgetting."""
    model = make_model("qwen3_next")
    layer = base_of(model).layers[0].linear_attn
    x = torch.randn(1, 5, 32, generator=torch.Generator().manual_seed(0))
    whole = layer.fix_query_key_value_ordering(layer.in_proj_qkvz(x), layer.in_proj_ba(x))
    for name, part in zip(("q", "k", "v", "gate", "beta", "decay"), whole, strict=True):
        place = find(positions_of(model), f"layers.0.attn.{name}")
        own = weight_at(place, base_of(model).get_submodule(place.module))
        assert torch.allclose(x @ own.T, part.flatten(2), atol=1e-6)


def test_each_layer_of_a_hybrid_has_the_positions_of_its_type():
    model = make_model("qwen3_next")
    names = {p.name for p in positions_of(model)}
    here, there = ({n for n in names if n.startswith(f"layers.{i}.")} for i in (0, 1))
    shared = {n.replace("layers.0", "layers.1") for n in here} & there
    assert {f"layers.1.attn.{part}" for part in ("q", "k", "v", "gate", "o", "norm")} <= shared
    assert {n for n in here if n.replace(".0.", ".1.", 1) not in there} == {
        "layers.0.attn.beta", "layers.0.attn.decay",
    }  # fmt: skip
    assert {n for n in there if n.replace(".1.", ".0.", 1) not in here} == {
        "layers.1.attn.heads", "layers.1.attn.q.norm", "layers.1.attn.k.norm",
    }  # fmt: skip
    assert {u.module for u in find_unreached(model)} == {
        f"layers.0.linear_attn{part}" for part in ("", ".conv1d", ".norm")
    }


def test_layers_that_take_keys_and_values_from_others_have_no_positions_for_them():
    """Gemma 4: the last two of four layers; and inputs of their own for each layer."""
    model = make_model("gemma4-e2b")
    names = {p.name for p in positions_of(model)}
    assert {n for n in names if n.endswith(("attn.k", "attn.v", "attn.k.norm"))} == {
        f"layers.{layer}.attn.{part}" for layer in (0, 1) for part in ("k", "v", "k.norm")
    }
    widths = [find(positions_of(model), f"layers.{n}.attn.q").out_features for n in range(4)]
    assert widths == [32, 64, 32, 64]
    assert {f"layers.3.input.{part}" for part in ("gate", "up", "norm")} <= names
    assert {"inputs.linear", "inputs.norm"} <= names
    assert find_unreached(model) == ()


def test_where_keys_are_values_too_a_change_of_keys_changes_both():
    model = make_model("gemma4-a4b")
    names = {p.name for p in positions_of(model)}
    assert "layers.1.attn.k" in names and "layers.1.attn.v" not in names
    values = []
    hook = (
        base_of(model)
        .layers[1]
        .self_attn.v_norm.register_forward_pre_hook(lambda module, args: values.append(args[0]))
    )
    model(**INPUTS)
    attach_at(model, ["layers.1.attn.k"])
    model(**INPUTS)
    hook.remove()
    assert (values[1] - values[0]).abs().max() > 1e-3
    assert {u.module for u in find_unreached(model)} == {"layers.0.router", "layers.1.router"}
