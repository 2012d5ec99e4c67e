"""How each state of a model is found; ``model_state`` says what is done about them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from sparsearch.config.tasks.types import TASK_TYPES
from sparsearch.spaces.backbone.parameters import ATTACHED, base_of
from sparsearch.spaces.backbone.quantised.settings import quantisation_of
from sparsearch.spaces.backbone.quantised.weights import (
    KeptAsLoaded,
    bits_of,
    is_quantised,
    quantised_linears,
)
from sparsearch.spaces.families.registry import FAMILIES
from sparsearch.spaces.values import SHAPES_ALONE

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["FINDERS", "ModelState", "StateName", "find_attached", "find_compiled", "has_module"]

StateName = Literal[
    "wrapped",
    "compiled",
    "peft",
    "replaced",
    "sharded",
    "quantised",
    "bitsandbytes",
    "integer",
    "offloaded",
    "meta",
    "spread",
    "dispatched",
    "reparametrised",
    "attached",
    "attached elsewhere",
    "foreign",
    "head inside",
]

_PARALLEL = {
    "DataParallel",
    "DeepSpeedEngine",
    "DistributedDataParallel",
    "FSDPModule",
    "FullyShardedDataParallel",
}
_QUANTISED = re.compile(
    r"quant|[48]bit|fp8|gptq|awq|hqq|eetq|aqlm|bitsandbytes|torchao", re.IGNORECASE
)
_PLAIN = (
    "torch.nn.modules.linear.NonDynamicallyQuantizableLinear",  # of torch's attention
    "transformers.models.",  # Falcon has a linear of its own
)
"""How the classes of layers begin that are no replacements, whatever their names and forwards say."""
_LOAD_ANEW = "load the model anew with from_pretrained"


@dataclass(frozen=True)
class ModelState:
    """One state that a model is in.

    Attributes:
        name: Short name, by which an entry point allows it.
        message: What is found, and in which module.
        hint: The way out.
    """

    name: StateName
    message: str
    hint: str


def has_module(model: nn.Module, path: str) -> bool:
    """Whether a model has a module at a path."""
    return any(name == path for name, _ in model.named_modules())


def _modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Modules by name, nothing attached among them."""
    return ((n, m) for n, m in model.named_modules() if ATTACHED not in n.split("."))


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters and buffers by name, nothing attached among them."""
    for path, module in _modules(model):
        for name, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is not None:
                yield f"{path}.{name}".lstrip("."), tensor


def _classes(module: object) -> tuple[type, ...]:
    return type(module).__mro__


def _wrapped(model: nn.Module) -> Iterator[ModelState]:
    for _, module in _modules(model):
        if names := _PARALLEL & {c.__name__ for c in _classes(module)}:
            yield ModelState(
                "wrapped",
                f"the model is wrapped for parallel training ({min(names)})",
                "use the plain model (often model.module): attach first, then wrap",
            )
            return


def find_compiled(model: nn.Module) -> Iterator[ModelState]:
    """Whole models, and single modules, that ``torch.compile`` runs."""
    for _, module in _modules(model):
        if "_orig_mod" in module._modules or getattr(module, "_compiled_call_impl", None):
            yield ModelState(
                "compiled",
                "the model is compiled (torch.compile): compiled code does not see hooks that come or go",
                "use the plain model (model._orig_mod; after model.compile() load it anew), and compile it last",
            )
            return


def _peft(model: nn.Module) -> Iterator[ModelState]:
    """By the classes of modules: attributes such as ``peft_config`` come and go otherwise."""
    adapters = {
        name: module
        for name, module in _modules(model)
        if any(c.__module__.partition(".")[0] == "peft" for c in _classes(module))
    }
    auxiliary = [
        name
        for name, module in adapters.items()
        if any(c.__name__ == "AuxiliaryTrainingWrapper" for c in _classes(module))
    ]
    if layers := [name for name in adapters if name not in auxiliary]:
        kind = type(adapters[layers[-1]])
        yield ModelState(
            "peft",
            f"the model carries a PEFT adapter ({kind.__module__}.{kind.__name__} at "
            f"{layers[-1] or 'its root'})",
            "model = model.merge_and_unload() merges it, model.unload() takes it off; after add_adapter, "
            + _LOAD_ANEW,
        )
    elif auxiliary:
        yield ModelState(
            "peft",
            f"PEFT's {type(adapters[auxiliary[0]]).__name__} is left at {auxiliary[0]} of an adapter "
            "that was unloaded",
            f"put the trained module itself there: model.{auxiliary[0]} = "
            f"model.{auxiliary[0]}.modules_to_save.default",
        )


def _foreign(model: nn.Module) -> Iterator[ModelState]:
    family = getattr(getattr(base_of(model), "config", None), "model_type", None)
    if family is None:
        yield ModelState(
            "foreign",
            f"a {type(model).__name__} is no transformers model: it has no config with a model_type",
            "give the model as from_pretrained returns it",
        )
    elif family in FAMILIES:
        layers = [f"{stack.layers}.0" for stack in FAMILIES[family].stacks]
        if not any(has_module(base_of(model), path) for path in layers):
            yield ModelState(
                "foreign",
                f"a {type(model).__name__} is not a whole {family} model: it has no {layers[0]}",
                "give the whole model, not a part of it",
            )


def _head_inside(model: nn.Module) -> Iterator[ModelState]:
    """A class for a task that is its own backbone (T5 for answers): its head would be frozen, and counted, with it."""
    import transformers

    if base_of(model) is not model or not hasattr(model, "config"):
        return
    loaders = {facts.auto_model for facts in TASK_TYPES.values() if facts.has_head}
    classes = [
        getattr(transformers, name)._model_mapping.get(type(model.config), ())
        for name in sorted(loaders)
    ]
    if type(model) in classes:
        yield ModelState(
            "head inside",
            f"a {type(model).__name__} keeps its head inside its backbone: it would not be trained",
            "choose a model of another family for this task",
        )


def _sharded(model: nn.Module) -> Iterator[ModelState]:
    for name, tensor in _tensors(model):
        if hasattr(tensor, "ds_id"):
            how = "partitioned by DeepSpeed ZeRO stage 3"
            way = "use ZeRO stage 1 or 2, which leave the weights whole, and attach"
        elif {"DTensor", "FlatParameter"} & {c.__name__ for c in _classes(tensor)}:
            how, way = "sharded over several processes", "attach before sharding"
        else:
            continue
        yield ModelState(
            "sharded",
            f"the model's weights are {how}: {name} is not whole here",
            f"{way}, to a model that was loaded whole",
        )
        return


def _quantised(model: nn.Module) -> Iterator[ModelState]:
    """By the loader's mark, by classes of modules and weights, or by their type of number."""
    from torch import Tensor, nn

    way = "load it without quantisation, in float32, bfloat16 or float16"
    if quantisation_of(model) is not None:
        bits = min(bits_of(module.weight) or 0 for _, module in quantised_linears(model))
        message = f"the model's linears are quantised by bitsandbytes, to {bits} bits: their values are needed here"
        yield ModelState(
            "bitsandbytes", message, f"{way}; export --to spec and --to peft keep it quantised"
        )
    elif getattr(model, "is_quantized", False):
        method = getattr(model, "quantization_method", "by its loader")
        how = getattr(method, "value", method)
        yield ModelState("quantised", f"the model is quantised ({how})", way)
    for name, module in _modules(base_of(model)):
        kind = type(module)
        described = f"{kind.__module__}.{kind.__name__}"
        if is_quantised(module._parameters.get("weight")) and quantisation_of(model) is not None:
            continue
        linear = hasattr(module, "in_features") or hasattr(module, "infeatures")
        if _QUANTISED.search(described) and not described.startswith(_PLAIN):
            yield ModelState("quantised", f"the model is quantised: {name} is a {described}", way)
            return
        known = getattr(kind, "forward", None) is nn.Linear.forward or described.startswith(_PLAIN)
        plain = not linear or known
        if not plain or "base_layer" in module._modules:
            yield ModelState(
                "replaced",
                f"layers of the model were replaced: {name} is a {described}",
                f"{_LOAD_ANEW}, and attach before other packages change its layers",
            )
            return
    others = [(n, t) for n, t in _tensors(model) if not is_quantised(t)]
    for name, tensor in others:
        if type(tensor) not in (nn.Parameter, Tensor) and type(tensor).__name__ != SHAPES_ALONE:
            yield ModelState(
                "quantised",
                f"the model is quantised or packed: {name} is of type {type(tensor).__name__}",
                way,
            )
            return
    for name, parameter in others:
        number = parameter.dtype
        small = number.itemsize < 2 or not number.is_floating_point
        if small and isinstance(parameter, nn.Parameter):
            yield ModelState("integer", f"the model is quantised: {name} is of {number}", way)
            return


def _offloaded(model: nn.Module) -> Iterator[ModelState]:
    for name, module in _modules(model):
        hook = getattr(module, "_hf_hook", None)
        if any(getattr(h, "offload", False) for h in (hook, *getattr(hook, "hooks", ()))):
            yield ModelState(
                "offloaded",
                f"the model is offloaded by accelerate: the weights of {name or 'the model'} are on the meta "
                "device between its calls",
                "load it whole: from_pretrained without device_map, or with one device in it",
            )
            return


def _meta(model: nn.Module) -> Iterator[ModelState]:
    for name, tensor in _tensors(model):
        if tensor.is_meta:
            yield ModelState(
                "meta",
                f"weights of the model are on the meta device, without values: {name}",
                "load it whole, with from_pretrained and no offloading",
            )
            return


def _spread(model: nn.Module) -> Iterator[ModelState]:
    """Accelerate has dispatched a model if its hooks move what modules are given."""
    parameters = (
        parameter
        for _, module in _modules(model)
        for parameter in module.parameters(recurse=False)
    )
    devices = sorted({str(p.device) for p in parameters if not p.is_meta})
    if len(devices) > 1:
        moves = any(hasattr(module, "_hf_hook") for _, module in _modules(model))
        yield ModelState(
            "dispatched" if moves else "spread",
            f"the model's weights lie on several devices: {', '.join(devices)}",
            f"load it onto one, or move it: model.to({devices[-1]!r})",
        )


def _reparametrised(model: nn.Module) -> Iterator[ModelState]:
    """Weights that are computed from others at each call: masks of ``prune``, parametrizations, weight norm."""
    from torch import Tensor

    for path, module in _modules(base_of(model)):
        computed = [*getattr(module, "parametrizations", ())] + [
            name
            for name, value in vars(module).items()
            if isinstance(value, Tensor)
            and {f"{name}_orig", f"{name}_v"} & module._parameters.keys()
        ]
        if computed:
            yield ModelState(
                "reparametrised",
                f"{path}.{computed[0]} is computed from other tensors at each call (a mask of torch.nn.utils.prune, "
                "a parametrization, a weight norm)",
                "make it permanent: torch.nn.utils.prune.remove, parametrize.remove_parametrizations, "
                "remove_weight_norm or remove_spectral_norm",
            )
            return


def find_attached(model: nn.Module) -> Iterator[ModelState]:
    """A structure attached to the model, to a part of it, or to a model that it is a part of."""
    parts = [
        n.removesuffix(f".{ATTACHED}") for n, _ in model.named_modules() if n.endswith(ATTACHED)
    ]
    if ATTACHED in parts:
        yield ModelState(
            "attached", "the model already has a structure attached", "detach(model) first"
        )
    elif parts:
        yield ModelState(
            "attached elsewhere",
            f"a structure is attached to a part of the model, {parts[0]}",
            f"detach(model.{parts[0]}) first, or give that part",
        )
    elif hooked := [name for name, module in model.named_modules() if _runs_units(module)]:
        yield ModelState(
            "attached elsewhere",
            f"a structure is attached to a model that this is a part of (it runs at {hooked[0]})",
            "detach that model first, or give it whole",
        )


def _runs_units(module: nn.Module) -> bool:
    """Whether a forward hook of this package, or a forward that it took over, is on a module."""
    hooks = (*module._forward_pre_hooks.values(), *module._forward_hooks.values())
    called = (*hooks, vars(module).get("forward"))
    modules = [str(getattr(f, "__module__", "")) for f in called]
    return any(m.startswith("sparsearch.spaces") and m != KeptAsLoaded.__module__ for m in modules)


FINDERS: tuple[Callable[[nn.Module], Iterator[ModelState]], ...] = (
    _wrapped,
    find_compiled,
    _peft,
    _foreign,
    _head_inside,
    _sharded,
    _reparametrised,
    _quantised,
    _offloaded,
    _meta,
    _spread,
    find_attached,
)
