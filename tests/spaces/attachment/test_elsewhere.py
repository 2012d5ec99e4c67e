"""Offloaded, sharded and partitioned parameters: every kind is right, or refuses and names the library."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from accelerate import cpu_offload
from accelerate.hooks import attach_align_device_hook, remove_hook_from_submodules
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from sparsearch.errors import StructureError
from sparsearch.spaces.attachment.attach import attach_modules, detach
from sparsearch.spaces.attachment.attachment import attachment_of
from sparsearch.spaces.attachment.weights_file import load_weights, weights_of
from sparsearch.spaces.backbone.parameters import positions_of
from sparsearch.spaces.compaction.merge import merge
from sparsearch.spaces.kinds import make_kind
from tests.conftest import FAMILIES
from tests.helpers.kind_table import TABLE, units_of
from tests.helpers.logits import logits

CPU = torch.device("cpu")
OFFLOADABLE = [f for f in FAMILIES if f != "deberta-v2"]
"""DeBERTa itself reads its relative embeddings outside their forward, and fails when offloaded."""


@pytest.fixture(
    params=TABLE, ids=[f"{k}{'-parallel' if 'parallel' in o else ''}" for k, o in TABLE]
)
def kind(request):
    name, options = request.param
    return make_kind(name, dict(options))


def attached(model, kind, randomise, train_head=True):
    attach_modules(model, units_of(model, kind), train_head)
    randomise(model)
    return model


def offload_units(model, **options):
    """What is attached offloaded, and no more."""
    attachment = attachment_of(model)
    weights = {name: tensor.clone() for name, tensor in attachment.state_dict().items()}
    attach_align_device_hook(attachment, CPU, offload=True, weights_map=weights, **options)


@pytest.mark.parametrize("buffers", [False, True])
@pytest.mark.parametrize("family", OFFLOADABLE)
def test_every_kind_is_right_in_an_offloaded_model_or_names_accelerate(
    build, family, kind, inputs, randomise, buffers
):
    model = attached(build(family), kind, randomise, train_head=False)
    expected = logits(model, inputs)
    reads = {"weight_mask": "which has a mask", "dora": "which dora reads"}.get(kind.name)
    cpu_offload(model, CPU, offload_buffers=buffers and not reads)
    if reads:  # the weight, outside the linear's forward
        with pytest.raises(StructureError, match=f"{reads}.*accelerate") as error:
            logits(model, inputs)
        assert "remove_hook_from_submodules" in error.value.hint
    else:
        for _ in range(2):
            assert torch.allclose(logits(model, inputs), expected, atol=1e-6)
    remove_hook_from_submodules(model)
    assert torch.equal(logits(model, inputs), expected)
    cpu_offload(model, CPU)
    plain = logits(build(family), inputs)
    assert torch.equal(logits(detach(model), inputs), plain)


def test_every_kind_is_right_when_its_units_alone_are_offloaded(
    build, family, kind, inputs, randomise
):
    model = attached(build(family), kind, randomise)
    expected = logits(model, inputs)
    offload_units(model)
    for _ in range(2):
        assert torch.allclose(logits(model, inputs), expected, atol=1e-6)


def test_every_kind_refuses_units_that_no_hook_of_theirs_brings_in(build, kind, inputs, randomise):
    model = attached(build("bert"), kind, randomise)
    offload_units(model, preload_module_classes=["Attachment"])
    with pytest.raises(StructureError, match=f"what {kind.name} at .* accelerate"):
        logits(model, inputs)


def test_every_kind_refuses_to_be_attached_to_an_offloaded_model(build, family, kind):
    model = build(family)
    cpu_offload(model, CPU)
    with pytest.raises(StructureError, match="accelerate"):
        attach_modules(model, units_of(model, kind))
    assert attachment_of(model) is None


def test_offloaded_units_are_not_merged_saved_or_loaded(build, kind, inputs, randomise):
    model = attached(build("bert"), kind, randomise)
    stored = weights_of(model)
    backbone = {n: p.clone() for n, p in model.base_model.named_parameters()}
    offload_units(model)
    for read in (merge, weights_of, lambda model: load_weights(model, stored)):
        if read is merge and not kind.mergeable:
            continue
        with pytest.raises(StructureError, match="accelerate"):
            read(model)
    assert all(torch.equal(p, backbone[n]) for n, p in model.base_model.named_parameters())


def test_masks_of_an_offloaded_model_do_not_choose_weights(build, inputs, randomise):
    model = attached(build("bert"), make_kind("weight_mask", {"rank": 2}), randomise)
    cpu_offload(model, CPU)
    with pytest.raises(StructureError, match="what weight_mask at .* accelerate"):
        attachment_of(model).advance(0, 10)


@pytest.fixture(scope="module")
def mesh():
    """A group of one process."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


def shard(model, mesh, parts):
    """Shard some parts of a model, then its layers, then the rest."""
    for part in parts:
        fully_shard(part, mesh=mesh)
    for name, module in model.named_modules():
        if name.rpartition(".")[2].isdigit() and not isinstance(module, nn.Linear):
            fully_shard(module, mesh=mesh)
    fully_shard(model, mesh=mesh)


def whole(tensor):
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def trained(model, inputs):
    """Outputs before and after one step, and the weights."""
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.05)
    before = model(**inputs).logits
    before.square().sum().backward()
    optimizer.step()
    weights = {n: whole(p.detach()).clone() for n, p in model.named_parameters()}
    return before.detach(), logits(model, inputs), weights


@pytest.mark.parametrize("sharded", ["layers and model", "units too", "every linear and norm too"])
@pytest.mark.parametrize("family", ["bert", "gpt2", "llama"])
def test_every_kind_trains_alike_under_fsdp(build, family, kind, inputs, randomise, mesh, sharded):
    expected = trained(attached(build(family), kind, randomise), inputs)
    model, parts = attached(build(family), kind, randomise), []
    if sharded == "units too":
        parts = [u for u in attachment_of(model).units.values() if list(u.parameters())]
    elif sharded == "every linear and norm too":
        parts = [m for m in model.modules() if isinstance(m, nn.Linear | nn.LayerNorm)]
    shard(model, mesh, parts)
    found = trained(model, inputs)
    assert not torch.equal(expected[0], expected[1])
    for one, other in zip(expected[:2], found[:2], strict=True):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-4)
    for name, weight in expected[2].items():
        assert torch.allclose(weight, found[2][name], rtol=1e-4, atol=1e-5), name


def test_what_is_attached_is_not_sharded_as_a_whole(build, kind, inputs, randomise, mesh):
    model = attached(build("bert"), kind, randomise)
    shard(model, mesh, [attachment_of(model)])
    with pytest.raises(StructureError, match=f"what {kind.name} at .* DTensor") as error:
        logits(model, inputs)
    assert "not on what is attached" in error.value.hint


def test_a_sharded_model_takes_no_units(build, kind, mesh):
    model = build("bert")
    shard(model, mesh, [])
    with pytest.raises(StructureError, match=r"wrapped .*FSDPModule") as error:
        attach_modules(model, units_of(model, kind))
    assert "attach first" in error.value.hint


def partition(module):
    """What DeepSpeed ZeRO stage 3 makes of parameters."""
    for number, parameter in enumerate(module.parameters()):
        parameter.ds_id = number
        parameter.data = parameter.data.new_empty(0)


def test_every_kind_names_deepspeed_where_it_has_partitioned_parameters(
    build, kind, inputs, randomise
):
    model = attached(build("bert"), kind, randomise)
    partition(attachment_of(model))
    with pytest.raises(StructureError, match=f"what {kind.name} at .* DeepSpeed ZeRO stage 3"):
        logits(model, inputs)
    model = build("bert")
    units = units_of(model, kind)
    partition(model)
    with pytest.raises(StructureError, match="DeepSpeed ZeRO stage 3"):
        attach_modules(model, units)


@pytest.mark.parametrize("name", ["lora", "bitfit", "adapter", "ia3"])
def test_a_linear_whose_output_is_split_between_processes_is_refused(
    build, inputs, randomise, name
):
    model, kind = build("bert"), make_kind(name, {})
    place = "layers.0.ffn" if name == "adapter" else "layers.0.attn.k"
    position = next(p for p in positions_of(model) if p.name == place)
    attach_modules(model, [(position, kind, sum(kind.sizes(position)), 1)])
    randomise(model)
    linear = model.base_model.get_submodule(position.module)
    linear.forward = lambda x: nn.Linear.forward(linear, x)[..., :16]  # one process's half
    with pytest.raises(StructureError, match=r"needs 32 output features, and there are 16"):
        logits(model, inputs)
