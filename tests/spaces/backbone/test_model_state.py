"""States of a model in which nothing can be attached, merged or written: one message each, at every entry point."""

from __future__ import annotations

import warnings

import accelerate
import pytest
import torch
import torch.distributed as dist
from accelerate.hooks import ModelHook, add_hook_to_module
from peft import LNTuningConfig, LoraConfig, PromptTuningConfig, get_peft_model
from torch import nn
from torch.nn.utils import parametrizations, prune
from transformers.utils.quantization_config import QuantizationMethod

from sparsearch.errors import BackboneError, ModelStateError, StructureError
from sparsearch.spaces.attachment.attach import attach, detach
from sparsearch.spaces.backbone.state import check_state, states_of
from sparsearch.spaces.calibration.calibrate import calibrate
from sparsearch.spaces.compaction.checkpoint import save_checkpoint
from sparsearch.spaces.compaction.compact import compact
from sparsearch.spaces.compaction.merge import merge
from sparsearch.spaces.compaction.remove import remove_units
from sparsearch.spaces.compaction.sparsity import measured_sparsity
from sparsearch.spaces.space import build_space

LORA = LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query", "value"])
NORMS = LNTuningConfig(task_type="SEQ_CLS", target_modules=["LayerNorm"])


class PackedTensor(torch.Tensor):
    """Stands for the tensor subclasses that quantisation packages put in the place of weights."""


class Linear4bit(nn.Linear):
    """Stands for the linears of quantisation packages."""

    def forward(self, x):
        return super().forward(x).round()


class PatchedLinear(nn.Linear):
    """A linear that computes something else."""

    def forward(self, x):
        return 2 * super().forward(x)


def query(model):
    return model.bert.encoder.layer[0].attention.self.query


def changed(change):
    """A state made by changing the model in place."""

    def make(model):
        change(model)
        return model

    return make


def replaced(kind):
    """A state in which one linear is of another class."""

    def change(model):
        linear = kind(32, 32)
        linear.load_state_dict(query(model).state_dict())
        model.bert.encoder.layer[0].attention.self.query = linear

    return changed(change)


def packed(weight):
    return weight.detach().as_subclass(PackedTensor)


def quantise_dynamic(model):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, torch.qint8, inplace=True)


def mark_quantised(model):
    model.is_quantized = True
    model.quantization_method = QuantizationMethod.BITS_AND_BYTES


def in_integers(model):
    weight = query(model).weight
    query(model).weight = nn.Parameter(weight.to(torch.int8), requires_grad=False)


def in_float8(model):
    weight = query(model).weight
    query(model).weight = nn.Parameter(weight.to(torch.float8_e4m3fn), requires_grad=False)


def drop_adapter(model):
    model.add_adapter(LORA)
    model.delete_adapter("default")


def partition(model):
    query(model).weight.ds_id = 0  # as DeepSpeed marks what ZeRO-3 partitions


def old_weight_norm(model):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        nn.utils.weight_norm(query(model))


def leftover_wrapper(model):
    return get_peft_model(model, NORMS).merge_and_unload()


STATES = {
    "never loaded": (changed(lambda m: m.to("meta")), "without values: bert.embeddings"),
    "one weight on meta": (changed(lambda m: query(m).to("meta")), r"without values: bert.*query"),
    "offloaded": (changed(accelerate.cpu_offload), "offloaded by accelerate"),
    "marked quantised": (changed(mark_quantised), "quantised .*bitsandbytes"),
    "quantised by torch": (changed(quantise_dynamic), "quantised: .* torch.ao.nn.quantized"),
    "quantised class": (replaced(Linear4bit), "quantised: .*query is a .*Linear4bit"),
    "packed weight": (
        changed(lambda m: query(m)._parameters.update(weight=packed(query(m).weight))),
        "quantised or packed: .*query.weight is of type PackedTensor",
    ),
    "patched linear": (replaced(PatchedLinear), "layers of the model were replaced: .*query"),
    "PEFT's wrapper": (lambda m: get_peft_model(m, LORA), "carries a PEFT adapter .*lora"),
    "PEFT's prompt": (
        lambda m: get_peft_model(m, PromptTuningConfig("SEQ_CLS", num_virtual_tokens=2)),
        "carries a PEFT adapter",
    ),
    "PEFT's injection": (changed(lambda m: m.add_adapter(LORA)), "carries a PEFT adapter .*lora"),
    "PEFT's emptied layers": (changed(drop_adapter), "carries a PEFT adapter"),
    "PEFT's leftover": (leftover_wrapper, "ModulesToSaveWrapper is left at classifier"),
    "pruned": (
        changed(lambda m: prune.l1_unstructured(query(m), "weight", 0.5)),
        r"query\.weight is computed .*prune",
    ),
    "pruned bias": (
        changed(lambda m: prune.l1_unstructured(query(m), "bias", 0.5)),
        r"query\.bias is computed",
    ),
    "parametrised": (
        changed(lambda m: parametrizations.orthogonal(query(m))),
        r"query\.weight is computed .*parametrization",
    ),
    "weight norm": (changed(old_weight_norm), r"query\.weight is computed .*weight norm"),
    "spectral norm": (
        changed(lambda m: nn.utils.spectral_norm(query(m))),
        r"query\.weight is com",
    ),
    "compiled": (torch.compile, "compiled"),
    "compiled in place": (changed(lambda m: m.compile()), "compiled"),
    "compiled layer": (changed(lambda m: m.bert.encoder.layer[1].compile()), "compiled"),
    "in parallel": (nn.DataParallel, "wrapped for parallel training .DataParallel"),
    "partitioned": (changed(partition), "partitioned by DeepSpeed ZeRO stage 3: bert"),
}
ON_WEIGHTS_OF_INTEGERS = {
    "integers": (changed(in_integers), r"quantised: .*query.weight is of torch.int8"),
    "float8": (changed(in_float8), r"quantised: .*query.weight is of torch.float8_e4m3fn"),
}
ENTRIES = {
    "attach": lambda m, s, folder: attach(m, s),
    "build_space": lambda m, s, folder: build_space(m, kinds={"lora": {}}),
    "merge": lambda m, s, folder: merge(m),
    "slim": lambda m, s, folder: compact(m, s),
    "slim unattached": lambda m, s, folder: compact(m, s, attached=False),
    "remove_units": lambda m, s, folder: remove_units(m, {"layers.0.attn.heads": [0]}),
    "align": lambda m, s, folder: calibrate(m, []),
    "save_checkpoint": lambda m, s, folder: save_checkpoint(m, s, folder),
    "measured_sparsity": lambda m, s, folder: measured_sparsity(m),
}
ON_SHAPES_ALONE = ("build_space", "remove_units")
"""Entry points for which the meta device will do."""
WITHOUT_WEIGHTS = ("never loaded", "one weight on meta")
ON_ATTACHED = ("merge", "slim", "align", "save_checkpoint", "measured_sparsity")


@pytest.mark.parametrize("state", STATES | ON_WEIGHTS_OF_INTEGERS)
def test_a_state_is_named_at_every_entry_point(build, structure, tmp_path, state):
    make, message = (STATES | ON_WEIGHTS_OF_INTEGERS)[state]
    model = make(build("bert"))
    trainable = {n: p.requires_grad for n, p in model.named_parameters()}
    entries = dict(ENTRIES)
    for entry in ON_SHAPES_ALONE if state in WITHOUT_WEIGHTS else ():
        del entries[entry]
    if state in ON_WEIGHTS_OF_INTEGERS:
        del entries["merge"]  # it names the units there
    for entry in entries.values():
        with pytest.raises(ModelStateError, match=message) as error:
            entry(model, structure, tmp_path)
        assert error.value.hint and error.value.exit_code == 2
        assert {n: p.requires_grad for n, p in model.named_parameters()} == trainable
        assert not hasattr(model, "sparsearch") and not list(tmp_path.iterdir())


@pytest.mark.parametrize("state", STATES)
def test_a_state_that_came_after_attaching_is_named(build, structure, tmp_path, state):
    make, message = STATES[state]
    model = make(attach(build("bert"), structure))
    for entry in ON_ATTACHED:
        with pytest.raises(ModelStateError, match=message):
            ENTRIES[entry](model, structure, tmp_path)
        assert len([n for n, _ in model.named_modules() if n.endswith("sparsearch")]) == 1
        assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("thing", [None, "a/path", {"model": 1}])
def test_what_is_no_model_is_named_at_every_entry_point(structure, tmp_path, thing):
    for entry in ENTRIES.values():
        with pytest.raises(ModelStateError, match="is no model"):
            entry(thing, structure, tmp_path)


def test_a_state_is_an_error_of_the_backbone_and_of_the_structure(build, structure):
    model = nn.DataParallel(build("bert"))
    for error in (BackboneError, StructureError):
        with pytest.raises(error, match="wrapped"):
            attach(model, structure)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_a_plain_model_in_any_floating_type_is_in_no_state(build, family, dtype):
    assert not list(states_of(build(family).to(dtype)))


def test_a_model_loaded_whole_by_a_device_map_is_in_no_state(build, tmp_path):
    build("bert").save_pretrained(tmp_path)
    auto = type(build("bert"))
    assert not list(states_of(auto.from_pretrained(tmp_path, device_map={"": "cpu"})))


def test_hooks_that_offload_nothing_are_no_state(build):
    model = build("bert")
    add_hook_to_module(query(model), ModelHook())
    assert not list(states_of(model))


def test_a_model_without_offloading_any_more_is_in_no_state(build, structure, inputs):
    model = build("bert")
    expected = model(**inputs).logits
    accelerate.cpu_offload(model)
    accelerate.hooks.remove_hook_from_submodules(model)
    assert torch.equal(attach(model, structure)(**inputs).logits, expected)


def test_an_offloaded_part_is_named(build, structure, tmp_path):
    build("bert").save_pretrained(tmp_path / "model")
    where = dict.fromkeys(["bert.embeddings", "bert.pooler", "classifier", "dropout"], "cpu")
    model = type(build("bert")).from_pretrained(
        tmp_path / "model",
        device_map={**where, "bert.encoder": "disk"},
        offload_folder=tmp_path / "off",
    )
    with pytest.raises(ModelStateError, match=r"offloaded .*bert\.encoder.* on the meta") as error:
        attach(model, structure)
    assert "load it whole" in error.value.hint


@pytest.mark.parametrize("take_off", ["unload", "merge_and_unload"])
def test_a_model_whose_adapter_is_taken_off_is_in_no_state(build, structure, take_off):
    model = getattr(get_peft_model(build("bert"), LORA), take_off)()
    attach(model, structure)
    assert model.sparsearch is not None


def test_the_way_out_of_a_leftover_wrapper_works(build, structure):
    model = leftover_wrapper(build("bert"))
    with pytest.raises(ModelStateError) as error:
        attach(model, structure)
    assert error.value.hint.endswith("model.classifier = model.classifier.modules_to_save.default")
    model.classifier = model.classifier.modules_to_save.default
    check_state(model)


def test_masks_made_permanent_are_no_state(build):
    model = build("bert")
    prune.l1_unstructured(query(model), "weight", 0.5)
    prune.remove(query(model), "weight")
    assert measured_sparsity(model)["layers.0.attn.q"] == pytest.approx(0.5)


@pytest.fixture
def process_group(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_a_model_wrapped_by_processes_is_named(build, structure, process_group):
    from torch.distributed.fsdp import fully_shard

    with pytest.raises(ModelStateError, match="DistributedDataParallel"):
        attach(nn.parallel.DistributedDataParallel(build("bert")), structure)
    sharded = build("bert")
    fully_shard(sharded, mesh=dist.init_device_mesh("cpu", (1,)))
    with pytest.raises(ModelStateError, match="wrapped for parallel training .FSDPModule"):
        attach(sharded, structure)
    split = build("bert")
    mesh = dist.init_device_mesh("cpu", (1,))
    query(split).weight = nn.Parameter(
        dist.tensor.distribute_tensor(query(split).weight.detach(), mesh)
    )
    with pytest.raises(ModelStateError, match="sharded over several processes: bert.*query"):
        attach(split, structure)


def test_attaching_twice_is_refused(build, structure):
    model = attach(build("bert"), structure)
    with pytest.raises(StructureError, match="already has a structure attached") as error:
        attach(model, structure)
    assert error.value.hint == "detach(model) first"
    with pytest.raises(ModelStateError, match="attached to a model that this is a part of"):
        attach(model.bert, structure)


def test_what_is_attached_to_a_part_or_under_a_wrapper_is_no_silent_nothing(build, structure):
    whole = build("bert")
    attach(whole.bert, structure)
    parallel = nn.DataParallel(attach(build("bert"), structure))
    compiled = torch.compile(attach(build("bert"), structure))
    adapted = get_peft_model(attach(build("bert"), structure), LORA)
    for model in (whole, parallel, compiled, adapted):
        for act in (detach, merge):
            with pytest.raises(ModelStateError):
                act(model)
    with pytest.raises(ModelStateError, match=r"detach\(model\.bert\)"):
        detach(whole)
    detach(whole.bert)
    assert not list(states_of(whole))
