"""Patches and hooks of other libraries on the backbone's modules: they go on, and stay when units go."""

from __future__ import annotations

import copy
import threading

import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module
from torch import nn
from transformers.pytorch_utils import Conv1D

from sparsearch.spaces.attachment.attach import attach_modules, detach
from sparsearch.spaces.attachment.attachment import attachment_of
from sparsearch.spaces.backbone.parameters import positions_of
from sparsearch.spaces.compaction.merge import merge
from sparsearch.spaces.kinds import make_kind
from tests.helpers.kind_table import TABLE, units_of
from tests.helpers.logits import logits

INSIDE = ["lnfit", "bitfit", "weight_mask"]
"""Kinds that change parameters of norms and linears, where others add to outputs."""


class Twice(ModelHook):
    """A patch by accelerate."""

    def post_forward(self, module, output):
        """The output, twice."""
        return output * 2


def by_accelerate(module):
    """A patch that wraps what forward was."""
    return add_hook_to_module(module, Twice())


def by_a_kernel(module):
    """A patch that replaces forward and reads the module's parameters, as kernel libraries do."""

    def forward(x):
        if isinstance(module, nn.LayerNorm):
            own = (module.weight, module.bias, module.eps)
            return 2 * nn.functional.layer_norm(x, module.normalized_shape, *own)
        if isinstance(module, nn.Linear | Conv1D):
            rows = module.weight.T if isinstance(module, Conv1D) else module.weight
            return 2 * nn.functional.linear(x, rows, module.bias)
        return 2 * nn.functional.rms_norm(
            x, module.weight.shape, module.weight, module.variance_epsilon
        )

    module.forward = forward


PATCHES = [by_accelerate, by_a_kernel]


def hosts(model, role):
    """The modules at positions of a role."""
    paths = {p.module for p in positions_of(model) if p.role == role}
    return [model.base_model.get_submodule(path) for path in sorted(paths)]


def patched(model, kind, patch):
    """The model, patched wherever a kind changes parameters."""
    roles = ("linear",) if kind.name == "weight_mask" else ("norm",)
    for role in roles:
        for module in hosts(model, role):
            patch(module)
    return model


def attached(model, name, randomise):
    """The model with randomised units of a kind wherever its patches may be."""
    kind = make_kind(name, dict(TABLE[[n for n, _ in TABLE].index(name)][1]))
    units = [u for u in units_of(model, kind) if name == "weight_mask" or u[0].role == "norm"]
    attach_modules(model, units, train_head=False)
    randomise(model)
    return model, kind


@pytest.mark.parametrize("patch", PATCHES)
@pytest.mark.parametrize("name", INSIDE)
@pytest.mark.parametrize("order", ["patch first", "attach first"])
def test_a_patched_forward_runs_with_changed_parameters_and_outlives_the_units(
    build, family, inputs, randomise, name, order, patch
):
    if name == "bitfit" and family in ("llama", "t5"):
        pytest.skip("their norms have no bias that could change")
    merged, kind = attached(build(family), name, randomise)
    expected = logits(patched(merge(merged), kind, patch), inputs)
    plain = logits(patched(build(family), kind, patch), inputs)
    assert not torch.allclose(plain, expected, atol=1e-5)

    model = build(family)
    if order == "patch first":
        patched(model, kind, patch)
        attached(model, name, randomise)
    else:
        attached(model, name, randomise)
        patched(model, kind, patch)
    theirs = {m: vars(m)["forward"] for m in model.modules() if "forward" in vars(m)}
    assert torch.allclose(logits(model, inputs), expected, rtol=1e-4, atol=1e-5)
    detach(model)
    assert {m: vars(m)["forward"] for m in model.modules() if "forward" in vars(m)} == theirs
    assert torch.equal(logits(model, inputs), plain)


@pytest.mark.parametrize(("name", "options"), TABLE)
def test_units_that_change_nothing_leave_a_patched_model_as_it_is(
    build, family, inputs, name, options
):
    model = build(family)
    for module in model.base_model.modules():
        if isinstance(module, nn.LayerNorm | nn.Linear | Conv1D):
            by_accelerate(module)
    before, kind = logits(model, inputs), make_kind(name, dict(options))
    units = units_of(model, kind)
    if name == "weight_mask":
        units = [(position, kind, 0, 1) for position, *_ in units]
    attach_modules(model, units)
    assert torch.equal(logits(model, inputs), before)


@pytest.mark.parametrize(("name", "options"), TABLE)
def test_no_forward_is_replaced_nor_any_attribute_left(
    build, family, inputs, randomise, name, options
):
    model = build(family)
    before = {m: set(vars(m)) for m in model.modules()}
    kind = make_kind(name, dict(options))
    attach_modules(model, units_of(model, kind))
    randomise(model)
    model(**inputs).logits.sum().backward()
    assert all(set(vars(m)) == names for m, names in before.items())
    detach(model)
    assert all(set(vars(m)) == names for m, names in before.items())


@pytest.mark.parametrize("name", INSIDE)
def test_a_forward_that_fails_leaves_the_parameters_in_place(build, inputs, randomise, name):
    model, _ = attached(build("bert"), name, randomise)
    expected = logits(model, inputs)
    module = hosts(model, "linear" if name == "weight_mask" else "norm")[0]
    own = module.weight

    def fail(*args):
        raise ValueError("no memory")

    module.forward = fail
    with pytest.raises(ValueError, match="no memory"):
        logits(model, inputs)
    del module.forward
    assert module.weight is own
    assert torch.equal(logits(model, inputs), expected)


@pytest.mark.parametrize("name", INSIDE)
def test_threads_that_share_a_model_get_equal_outputs(build, inputs, randomise, name):
    model, _ = attached(build("bert"), name, randomise)
    expected, wrong = logits(model, inputs), []

    def run():
        for _ in range(20):
            if not torch.equal(logits(model, inputs), expected):
                wrong.append(1)

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize("name", INSIDE)
def test_a_detached_deep_copy_has_no_hooks_and_the_original_keeps_its_own(
    build, inputs, randomise, name
):
    model, _ = attached(build("bert"), name, randomise)
    expected, plain = logits(model, inputs), logits(build("bert"), inputs)
    twin = detach(copy.deepcopy(model))
    assert torch.equal(logits(twin, inputs), plain)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in twin.modules())
    assert torch.equal(logits(model, inputs), expected)


@pytest.mark.parametrize("name", INSIDE)
@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_gives_the_same_gradients(
    build, inputs, randomise, name, reentrant
):
    gradients = []
    for recompute in (False, True):
        model, _ = attached(build("bert"), name, randomise)
        attachment_of(model).advance(0, 10)  # scores of masks learn from now on
        if recompute:
            kwargs = {"use_reentrant": reentrant}
            model.train().gradient_checkpointing_enable(kwargs)
            model.enable_input_require_grads()
            for module in model.modules():
                if isinstance(module, nn.Dropout):
                    module.p = 0.0
        model(**inputs).logits.sum().backward()
        gradients.append([p.grad for p in attachment_of(model).parameters()])
    plain, again = gradients
    assert any(g.abs().max() > 0 for g in plain)
    for one, other in zip(plain, again, strict=True):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", INSIDE)
def test_a_compiled_and_an_exported_model_compute_the_same(build, inputs, randomise, name):
    model, _ = attached(build("bert"), name, randomise)
    expected = logits(model, inputs)
    exported = torch.export.export(model, (), inputs).module()
    assert torch.allclose(logits(exported, inputs), expected, atol=1e-6)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    for _ in range(2):
        assert torch.allclose(logits(compiled, inputs), expected, atol=1e-6)


def test_hooks_that_others_put_on_a_unit_run(build, inputs, randomise):
    for name, options in TABLE:
        model = build("bert")
        kind = make_kind(name, dict(options))
        attach_modules(model, units_of(model, kind), train_head=False)
        randomise(model)
        expected, ran = logits(model, inputs), set()
        for key, unit in attachment_of(model).units.items():
            unit.register_forward_hook(lambda *_, key=key, ran=ran: ran.add(key))
        assert torch.allclose(logits(model, inputs), expected, atol=1e-6)
        assert ran == set(attachment_of(model).units), name
