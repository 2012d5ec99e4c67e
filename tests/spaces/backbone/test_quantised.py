"""Backbones in 8 and 4 bits: what they are to us, what goes to them, and that it computes what it should."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from transformers import AutoModelForSequenceClassification, BitsAndBytesConfig

from sparsearch.config.budgets import BudgetConfig
from sparsearch.errors import ModelStateError, StructureError
from sparsearch.spaces.attachment.attach import attach, detach
from sparsearch.spaces.backbone.identity import identify
from sparsearch.spaces.backbone.parameters import base_of, count_params
from sparsearch.spaces.backbone.quantised.weights import (
    exact_products,
    quantised_linears,
    weight_values,
)
from sparsearch.spaces.budget import resolve_all
from sparsearch.spaces.compaction.compact import compact
from sparsearch.spaces.compaction.merge import merge
from sparsearch.spaces.coverage import find_unreached, reach_of
from sparsearch.spaces.kinds import KINDS
from sparsearch.spaces.space import build_space
from sparsearch.spaces.structure import Structure
from tests.conftest import make_inputs
from tests.helpers.quantised import FITTING, load_in, structure_on

BITS = (8, 4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    from tests.conftest import make_model

    folder = tmp_path_factory.mktemp("model")
    make_model("bert", hidden_size=64, intermediate_size=128).save_pretrained(folder)
    return folder


def plain_copy(model):
    """The same model with plain linears that have the values of the quantised ones."""
    plain = copy.deepcopy(model)
    for path, module in [*quantised_linears(plain)]:
        linear = nn.Linear(module.in_features, module.out_features, module.bias is not None)
        linear.weight = nn.Parameter(weight_values(module, "weight"))
        linear.bias = module.bias
        plain.set_submodule(path, linear)
    plain.is_quantized, plain.config.quantization_config = False, None
    return plain


def randomise(model):
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.sparsearch.parameters():
            parameter += 0.02 * torch.randn_like(parameter)


@pytest.mark.parametrize("bits", BITS)
def test_the_backbone_counts_and_costs_what_it_does_in_full(folder, bits):
    whole, model = load_in(folder, None), load_in(folder, bits)
    assert len([*quantised_linears(base_of(model))]) == 12
    assert count_params(model) == count_params(whole)
    ours, theirs = (build_space(m, preset="s3pet-m") for m in (whole, model))
    assert theirs.candidates == ours.candidates and theirs.positions == ours.positions
    assert [vars(row) for row in reach_of(theirs)] == [vars(row) for row in reach_of(ours)]
    assert find_unreached(model) == find_unreached(whole)
    budgets = [
        resolve_all([BudgetConfig(max_bytes="0.5%")], s.backbone_params) for s in (ours, theirs)
    ]
    assert budgets[0] == budgets[1]


@pytest.mark.parametrize("bits", BITS)
def test_its_identity_sees_codes_and_scales_and_does_not_change_in_use(folder, bits):
    model = load_in(folder, bits)
    before = identify(model)
    assert before.weight_fingerprint != identify(load_in(folder, None)).weight_fingerprint
    assert before.quantisation["load_in_8bit" if bits == 8 else "load_in_4bit"]
    model(**make_inputs())
    assert identify(model) == before == identify(load_in(folder, bits))
    _, linear = next(quantised_linears(model))
    scales = linear.state.SCB if bits == 8 else linear.weight.quant_state.absmax
    for numbers in (linear.weight.data.view(-1), scales):
        last = numbers[-1].clone()
        numbers[-1] += 1
        assert identify(model).weight_fingerprint != before.weight_fingerprint
        numbers[-1] = last
    assert identify(model) == before


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("kind", FITTING)
def test_a_kind_computes_and_learns_as_over_plain_weights_of_these_values(folder, kind, bits):
    model = load_in(folder, bits)
    before = identify(model)
    structure = structure_on(model, kind)
    plain = plain_copy(model)
    other = Structure(
        identify(plain), *(getattr(structure, n) for n in ("task_type", "candidates", "kinds"))
    )
    torch.manual_seed(0)
    attach(model, structure)
    torch.manual_seed(0)
    attach(plain, other)
    found = []
    for m in (model, plain):
        randomise(m)
        with exact_products(m):
            logits = m(**make_inputs()).logits
            logits.logsumexp(1).sum().backward()
        found.append((logits, [p.grad for p in m.sparsearch.parameters() if p.grad is not None]))
    (logits, gradients), (expected, of_plain) = found
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)
    assert len(gradients) == len(of_plain) > 0
    for one, same in zip(gradients, of_plain, strict=True):
        torch.testing.assert_close(one, same, rtol=1e-3, atol=1e-5)
    detach(model)
    assert identify(model) == before


def test_every_kind_says_whether_it_goes_there(folder):
    model = load_in(folder, 4)
    for kind in KINDS:
        if kind in FITTING:
            continue
        space = build_space(model, kinds={kind: {}})
        with pytest.raises(ModelStateError, match=f"{kind} does not go with a quantised") as error:
            attach(model, structure_of(model, space))
        assert "other kinds" in error.value.hint


@pytest.mark.parametrize("options", [{"spectral": {}}, {"sparse_delta": {"support": "gradient"}}])
def test_options_that_ask_for_the_gradient_of_a_weight_are_refused(folder, options):
    model = load_in(folder, 8)
    with pytest.raises(ModelStateError, match="gradient of a weight"):
        attach(model, structure_of(model, build_space(model, kinds=options)))


def structure_of(model, space):
    from sparsearch.spaces.structure import make_structure

    return make_structure(space, space.candidates[:1], identify(model), "classification")


@pytest.mark.parametrize("bits", BITS)
def test_what_needs_the_values_of_weights_is_refused(folder, bits):
    model = load_in(folder, bits)
    structure = structure_on(model, "lora")
    for act in (lambda: compact(model, structure), lambda: merge(attach(model, structure))):
        with pytest.raises(ModelStateError, match=f"to {bits} bits: their values are needed") as e:
            act()
        assert "export --to spec" in e.value.hint


def test_a_structure_of_plain_weights_is_one_of_another_backbone(folder):
    structure = structure_on(load_in(folder, None), "lora")
    with pytest.raises(StructureError, match="another backbone") as error:
        attach(load_in(folder, 4), structure)
    assert "without quantisation" in error.value.hint
    structure = structure_on(load_in(folder, 4), "lora")
    with pytest.raises(StructureError) as error:
        attach(load_in(folder, None), structure)
    assert "BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type='nf4'" in error.value.hint


@pytest.mark.parametrize(
    "settings",
    [
        {"load_in_8bit": True},
        {
            "load_in_4bit": True,
            "bnb_4bit_use_double_quant": True,
            "bnb_4bit_compute_dtype": "float32",
        },
    ],
)
def test_a_model_that_the_user_quantised_carries_structures_of_its_own(folder, settings):
    def load():
        how = BitsAndBytesConfig(**settings, llm_int8_skip_modules=["classifier"])
        auto = AutoModelForSequenceClassification
        return auto.from_pretrained(folder, quantization_config=how, device_map="cpu").eval()

    structure = Structure.from_json(structure_on(load(), "lora").to_json())
    model = attach(load(), structure)
    model(**make_inputs()).logits.sum().backward()
    gradients = [p.grad for n, p in model.named_parameters() if n.endswith("lora.B")]
    assert gradients and all(g is not None and g.abs().max() > 0 for g in gradients)


def test_a_quantised_head_is_refused(folder):
    how = BitsAndBytesConfig(load_in_4bit=True)
    auto = AutoModelForSequenceClassification
    model = auto.from_pretrained(folder, quantization_config=how, device_map="cpu")
    structure = structure_on(model, "lora")
    with pytest.raises(ModelStateError, match=r"head is quantised.*classifier.weight") as error:
        attach(model, structure)
    assert error.value.hint.endswith("llm_int8_skip_modules=['classifier'])")


def test_weights_that_an_evaluation_has_rounded_are_refused(folder):
    model = load_in(folder, 4)
    structure = structure_on(model, "lora")
    for _, linear in quantised_linears(model):
        linear.weight.quant_state.packing_format_for_cpu = True  # as on a CPU with AVX512-BF16
    with pytest.raises(ModelStateError, match="repacked the 4-bit weights") as error:
        attach(model, structure)
    assert "before the first evaluation" in error.value.hint


def test_while_attached_an_evaluation_repacks_nothing(folder):
    model = load_in(folder, 4)
    linears = [linear for _, linear in quantised_linears(model)]
    for linear in linears:
        linear.support_avx512bf16_for_cpu = True
    attach(model, structure_on(model, "lora"))
    with torch.no_grad():
        model.eval()(**make_inputs())
    assert not any(getattr(m.weight.quant_state, "packing_format_for_cpu", False) for m in linears)
    assert all(linear.support_avx512bf16_for_cpu for linear in quantised_after_detach(model))


@pytest.mark.parametrize("bits", BITS)
def test_autocast_leaves_the_biases_as_they_were(folder, bits):
    model = load_in(folder, bits)
    before = identify(model)
    for name, parameter in base_of(model).named_parameters():
        if name.endswith("bias"):
            parameter.data += 0.1234567  # no number of bfloat16
    before = identify(model)
    for m in (model, attach(model, structure_on(model, "lora"))):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            m(inputs_embeds=torch.randn(1, 3, 64).bfloat16())
        assert identify(m) == before


def quantised_after_detach(model):
    return [linear for _, linear in quantised_linears(detach(model))]
