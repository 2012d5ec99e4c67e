"""The conformance table: every kind on every family."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from sparsearch.errors import ConfigError
from sparsearch.spaces.attachment.attach import attach_modules, detach
from sparsearch.spaces.attachment.attachment import attachment_of
from sparsearch.spaces.attachment.weights_file import load_weights, weights_of
from sparsearch.spaces.backbone.parameters import backbone_parameters, base_of, positions_of
from sparsearch.spaces.kinds import KINDS, make_kind
from tests.helpers.kind_table import TABLE, units_of
from tests.helpers.logits import logits

UNCOUNTED = ("sparse_delta",)
"""Torch counts matrix products, not gathered entries; the kind's own tests count those."""

ONCE = {
    "dora": lambda p, r: (
        2 * r * (p.in_features * p.out_features + r * (p.in_features + p.out_features))
    )
}
"""What is computed once in a pass through a linear, whatever its tokens: W A^T, A A^T and B A A^T."""


@pytest.fixture(
    params=TABLE, ids=[f"{k}{'-parallel' if 'parallel' in o else ''}" for k, o in TABLE]
)
def kind(request):
    name, options = request.param
    return make_kind(name, options)


def test_identity_at_initialisation(build, family, kind, inputs):
    model = build(family)
    before = logits(model, inputs)
    units = units_of(model, kind)
    if kind.name == "weight_mask":  # a mask prunes from the start, unless its size is 0
        units = [(position, kind, 0, 1) for position, *_ in units]
    attach_modules(model, units)
    assert torch.equal(logits(model, inputs), before)


def test_costs_are_what_is_attached(build, family, kind):
    model = build(family)
    units = units_of(model, kind)
    attachment = attach_modules(model, units)
    assert len(attachment.units) == len(units)
    for (position, _, size, _), unit in zip(units, attachment.units.values(), strict=True):
        assert sum(p.numel() for p in unit.parameters()) == kind.params(position, size)
        frozen = unit.state_dict().keys() - dict(unit.named_parameters()).keys()
        stored = sum(unit.get_buffer(name).nbytes for name in frozen)
        assert stored == kind.frozen_bytes(position, size)


def test_flops_are_what_torch_counts(build, family, kind, inputs):
    model = build(family)
    with FlopCounterMode(display=False) as counter:
        logits(model, inputs)
    before = counter.get_total_flops()
    units = units_of(model, kind)
    attach_modules(model, units)
    with FlopCounterMode(display=False) as counter:
        logits(model, inputs)
    counted = [u for u in units if kind.name not in UNCOUNTED]
    tokens = dict.fromkeys((p.name for p, *_ in units), inputs["input_ids"].numel())
    if family == "deberta-v2":  # the same linears project the relative positions
        relative = base_of(model).encoder.rel_embeddings.num_embeddings
        tokens = {n: t + relative * n.endswith(("attn.q", "attn.k")) for n, t in tokens.items()}
    expected = sum(kind.flops_per_token(p, size) * tokens[p.name] for p, _, size, _ in counted)
    if kind.name in ONCE:
        calls = {n: 1 + (t > inputs["input_ids"].numel()) for n, t in tokens.items()}
        expected += sum(ONCE[kind.name](p, size) * calls[p.name] for p, _, size, _ in units)
    assert counter.get_total_flops() - before == expected


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_each_unit_changes_the_output(build, family, kind, inputs, randomise, mode):
    def output():
        torch.manual_seed(0)  # the same dropout
        return logits(model, inputs)

    model = build(family).train(mode == "train")
    before, units = output(), units_of(model, kind)
    attachment = attach_modules(model, units, train_head=False)
    randomise(model)
    for running in units:  # the others stand idle
        attachment.skip([unit is not running for unit in units for _ in range(unit[3])])
        changed = not torch.equal(output(), before)
        # Softmax does not see a shift of all keys of a query, nor a lone position's own scale.
        blind = running[0].name.endswith(("attn.k", "cross.k")) and kind.name == "bitfit"
        assert changed or blind, running[0].name
    attachment.skip([True] * sum(unit[3] for unit in units))
    assert torch.equal(output(), before)


def test_gradient_reaches_every_gate(build, family, kind, inputs, randomise):
    model = build(family)
    units = units_of(model, kind)
    attachment = attach_modules(model, units)
    randomise(model)
    z = torch.full((sum(u[3] for u in units),), 0.5, requires_grad=True)
    with attachment.gated(z):
        loss = model(**inputs).logits.square().sum()
    (gradient,) = torch.autograd.grad(loss, [z])
    assert torch.isfinite(gradient).all()
    names = [u[0].name for u in units for _ in range(u[3])]
    silent = [n for n, g in zip(names, gradient.tolist(), strict=True) if g == 0]
    assert all(n.endswith((".k",)) and kind.name == "bitfit" for n in silent), silent


def test_open_gates_are_the_attached_structure_and_closed_ones_the_backbone(
    build, family, kind, inputs, randomise
):
    model = build(family)
    before = logits(model, inputs)
    units = units_of(model, kind)
    attachment = attach_modules(model, units, train_head=False)
    randomise(model)
    gates = sum(u[3] for u in units)
    attached = logits(model, inputs)
    with attachment.gated(torch.ones(gates)):
        assert torch.allclose(logits(model, inputs), attached, atol=1e-6)
    with attachment.gated(torch.zeros(gates)):
        assert torch.allclose(logits(model, inputs), before, atol=1e-6)


def test_attach_then_detach_leaves_the_model_bit_identical(build, family, kind, inputs, randomise):
    model = build(family)
    state = {n: t.clone() for n, t in model.state_dict().items()}
    flags = {n: p.requires_grad for n, p in model.named_parameters()}
    before = logits(model, inputs)
    attach_modules(model, units_of(model, kind), train_head=False)
    randomise(model)
    logits(model, inputs)
    detach(model)
    assert {n: p.requires_grad for n, p in model.named_parameters()} == flags
    assert model.state_dict().keys() == state.keys()
    assert all(torch.equal(t, state[n]) for n, t in model.state_dict().items())
    assert torch.equal(logits(model, inputs), before)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_only_attached_modules_and_the_head_train(build, family, kind, inputs):
    model = build(family)
    attach_modules(model, units_of(model, kind))
    model(**inputs).logits.sum().backward()
    assert not any(p.requires_grad or p.grad is not None for _, p in backbone_parameters(model))
    trainable = {n.split(".")[0] for n, p in model.named_parameters() if p.requires_grad}
    assert "sparsearch" in trainable and len(trainable) > 1


def test_save_and_load_give_equal_logits(build, family, kind, inputs, randomise, tmp_path):
    from safetensors.torch import load_file, save_file

    model = build(family)
    attach_modules(model, units_of(model, kind))
    randomise(model)
    expected = logits(model, inputs)
    save_file(weights_of(model), tmp_path / "weights.safetensors")
    again = build(family)
    attach_modules(again, units_of(again, kind))
    load_weights(again, load_file(tmp_path / "weights.safetensors"))
    assert torch.equal(logits(again, inputs), expected)


def test_a_deep_copy_has_its_own_hooks(build, kind, inputs, randomise):
    import copy

    model = build("bert")
    attach_modules(model, units_of(model, kind), train_head=False)
    before = logits(model, inputs)
    twin = copy.deepcopy(model)
    randomise(twin)
    for step in (0, 9):  # masks of the new scores
        attachment_of(twin).advance(step, 10)
    assert torch.equal(logits(model, inputs), before)
    assert not torch.equal(logits(twin, inputs), before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("names", [["lnfit"], ["bitfit"], ["lnfit", "bitfit"]], ids=str)
@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_norms_of_models_in_half_precision_are_changed(
    build, family, inputs, randomise, dtype, names
):
    whole, half = build(family), build(family).to(dtype)
    for model in (whole, half):
        kinds = [make_kind(name, {}) for name in names]
        norms = [p for p in positions_of(model) if p.role == "norm"]
        attach_modules(model, [(p, k, 1, 1) for p in norms for k in kinds], train_head=False)
        randomise(model)
    before, expected = logits(build(family), inputs), logits(whole, inputs)
    for enabled in (False, True):
        with torch.autocast("cpu", dtype, enabled=enabled):
            found = logits(half, inputs)
        assert found.dtype == dtype
        error = (found.float() - expected).abs().max()
        assert error < (expected - before).abs().max() / 2


@pytest.mark.parametrize("name", ["lnfit", "bitfit"])
def test_small_steps_move_the_norms_of_a_model_in_bfloat16(build, family, inputs, name):
    """A gain held in the model's own type would stay: 1.001 in bfloat16 is 1."""
    model, kind = build(family).to(torch.bfloat16), make_kind(name, {})
    norms = [p for p in positions_of(model) if p.role == "norm"]
    attachment = attach_modules(model, [(p, kind, 1, 1) for p in norms], train_head=False)
    outputs: dict[str, list[torch.Tensor]] = {p.name: [] for p in norms}
    for position in norms:
        base_of(model).get_submodule(position.module).register_forward_hook(
            lambda module, args, y, seen=outputs[position.name]: seen.append(y.detach())
        )
    parameters = list(attachment.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.0)
    (1e4 * model(**inputs).logits.float().square().sum()).backward()
    optimizer.step()
    logits(model, inputs)
    for parameter in parameters:
        assert parameter.dtype == torch.float32
        assert (parameter.abs() > 5e-4).any()
    assert not any(torch.equal(*seen) for seen in outputs.values())


def test_an_idle_unit_holds_no_input(build, inputs):
    model, kind = build("bert"), make_kind("adapter", {"parallel": True})
    attachment = attach_modules(model, units_of(model, kind))
    attachment.skip([True] * len(attachment.slots))
    logits(model, inputs)
    assert all(slot.seen is None for slot in attachment.slots)


def test_fused_projection_changes_only_its_part(build, inputs):
    model = build("gpt2")
    position = next(p for p in positions_of(model) if p.name == "layers.0.attn.k")
    seen = {}
    module = model.base_model.get_submodule(position.module)
    handle = module.register_forward_hook(lambda m, a, out: seen.update(dense=out.clone()))
    attachment = attach_modules(model, [(position, make_kind("bitfit", {}), 1, 1)])
    module.register_forward_hook(lambda m, a, out: seen.update(attached=out.clone()))
    with torch.no_grad():
        next(attachment.units.parameters()).fill_(1.0)
    logits(model, inputs)
    handle.remove()
    difference = (seen["attached"] - seen["dense"]).abs().amax(dim=(0, 1))
    assert difference.nonzero().flatten().tolist() == list(range(32, 64))


def test_registry_names_and_config_agree():
    assert all(kind.name == name for name, kind in KINDS.items())
    assert all(dataclasses.is_dataclass(k) for k in KINDS.values())


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("lore", {}, "unknown kind 'lore'"),
        ("lora", {"rank": 2}, "no option 'rank'; it has: max_rank, alpha"),
        ("lora", {"max_rank": "2"}, "max_rank must be int, not '2'"),
        ("lora", {"max_rank": 0}, "must be positive"),
        ("adapter", {"parallel": 1}, "parallel must be bool"),
        ("sparse_delta", {"smallest": 0}, "smallest must be positive"),
        ("sparse_delta", {"scale": -1.0}, "scale must be positive"),
        ("sparse_delta", {"support": "omp"}, "support must be one of residual, .*, not 'omp'"),
        ("sparse_delta", {"support": 3}, "support must be str"),
    ],
)
def test_bad_options_are_named(name, options, message):
    with pytest.raises(ConfigError, match=message):
        make_kind(name, options)


def test_a_whole_number_is_a_float():
    whole, fraction = (make_kind("lora", {"alpha": alpha}) for alpha in (16, 16.0))
    assert repr(whole) == repr(fraction) == "Lora(max_rank=4, alpha=16.0)"
