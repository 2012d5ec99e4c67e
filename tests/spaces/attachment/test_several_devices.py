"""A model over several devices: what is attached lies, and computes, where its host does.

torch's fake tensors stand for two GPUs. They have a device and no numbers, and refuse to be combined across devices.
That shows where things lie. What a real GPU computes, and gradients, it does not show.
"""

from __future__ import annotations

import accelerate
import pytest
import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoModelForSequenceClassification

from sparsearch.errors import ModelStateError
from sparsearch.spaces.attachment.attach import attach_modules
from sparsearch.spaces.backbone.state import check_state, states_of
from sparsearch.spaces.kinds.module_base import Unit
from sparsearch.spaces.kinds.vera.module import drawn
from sparsearch.spaces.space import build_space
from tests.conftest import make_inputs, make_model

FIRST, SECOND = "cuda:0", "cuda:1"
KINDS = {
    "lora": {"max_rank": 1},
    "dora": {},
    "adapter": {},
    "compacter": {},
    "bitfit": {},
    "lnfit": {},
    "ia3": {},
    "vera": {"rank": 4},
}


def put(module, device):
    """``module.to(device)``, which torch has not for fake parameters of one."""
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                moved = torch.empty_like(parameter, device=device)
                part._parameters[name] = nn.Parameter(moved, parameter.requires_grad)
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = torch.empty_like(buffer, device=device)
    return module


def spread(model):
    """BERT's first layer on one device, the second and the head on another."""
    put(model, FIRST)
    for part in (model.bert.encoder.layer[1], model.classifier):
        put(part, SECOND)
    return model


def dispatched(model):
    """The same, moved at its layers as accelerate does."""
    spread(model)
    for part, device in (
        (model.bert.encoder.layer[0], FIRST),
        (model.bert.encoder.layer[1], SECOND),
        (model.classifier, SECOND),
    ):
        add_hook_to_module(part, AlignDevicesHook(execution_device=device))
    return model


@pytest.fixture
def fake(monkeypatch):
    monkeypatch.setattr(Unit, "to", put)
    drawn.cache_clear()
    with FakeTensorMode():
        yield
    drawn.cache_clear()  # else it would go on giving matrices without numbers


def attached(model, kind):
    space = build_space(model, kinds={kind: {**KINDS[kind], "on": ["*layers.*"]}})
    units = [
        (space.position(c.position), space.kinds[c.kind], c.size, 1) for c in space.candidates
    ]
    return attach_modules(model, units)


@pytest.mark.parametrize("kind", KINDS)
def test_a_unit_lies_where_its_host_does(fake, kind):
    model = dispatched(make_model("bert"))
    slots = attached(model, kind).slots
    for slot in slots:
        wanted = SECOND if slot.position.layer == 1 else FIRST
        tensors = [*slot.unit.parameters(), *slot.unit.buffers()]
        assert {str(tensor.device) for tensor in tensors} == {wanted}, slot.key
    assert {slot.position.layer for slot in slots} == {0, 1}


@torch.no_grad()
@pytest.mark.parametrize("kind", ["lora", "bitfit"])
def test_what_it_computes_is_never_combined_across_devices(fake, kind):
    """Host by host: a whole model slices by Python, for which torch asks a GPU that is there."""
    model = dispatched(make_model("bert"))
    attachment = attached(model, kind)
    hosts = [s.position for s in attachment.slots if s.position.module == s.position.entry]
    hosts = [p for p in hosts if p.role == "linear"]

    def run(position):
        host, device = model.bert.get_submodule(position.module), f"cuda:{position.layer}"
        return host(torch.randn(2, position.in_features, device=device))

    assert {str(run(p).device) for p in hosts} == {FIRST, SECOND}
    put(attachment, FIRST)
    with pytest.raises(RuntimeError, match="Expected all tensors to be on the same device"):
        run(next(p for p in hosts if p.layer == 1))


def test_a_model_whose_inputs_nobody_moves_is_refused(fake):
    model = spread(make_model("bert"))
    with pytest.raises(ModelStateError, match="on several devices: cuda:0, cuda:1") as error:
        attach_modules(model, [])
    assert "load it onto one" in error.value.hint


def test_what_searches_or_merges_still_wants_one_device(fake):
    model = dispatched(make_model("bert"))
    assert [state.name for state in states_of(model)] == ["dispatched"]
    with pytest.raises(ModelStateError, match="several devices"):
        check_state(model, allow={"attached"})


def test_a_device_map_with_one_device_trains(tmp_path):
    make_model("bert").save_pretrained(tmp_path)
    auto = AutoModelForSequenceClassification
    model = auto.from_pretrained(tmp_path, device_map={"": "cpu"})
    accelerate.dispatch_model(model, {"": "cpu"}, force_hooks=True)
    space = build_space(model, kinds={"lora": {"max_rank": 1}})
    units = [
        (space.position(c.position), space.kinds[c.kind], c.size, 1) for c in space.candidates
    ]
    attachment = attach_modules(model, units)
    model(**make_inputs()).logits.sum().backward()
    assert all(unit.B.grad is not None for unit in attachment.units.values())
