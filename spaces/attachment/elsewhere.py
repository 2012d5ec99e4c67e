"""Tensors that another library keeps elsewhere (offloaded, sharded, partitioned), and how to get out of that.

Arithmetic with such a tensor may give a wrong result without an error: a sum with a tensor of the meta device leaves
a tensor as it was.
"""

from __future__ import annotations

import sys

from torch import Tensor, nn

from sparsearch.errors import StructureError

__all__ = ["check_complete", "check_here", "is_elsewhere", "is_hooked"]

_WHOLE_SHARDS = (
    "attach first, then call fully_shard on the layers and on the model, not on what is attached"
)


def is_elsewhere(tensor: Tensor) -> bool:
    """Whether a tensor does not hold all of its numbers now."""
    return tensor.is_meta or hasattr(tensor, "ds_id") or _is_dtensor(tensor)


def _is_dtensor(tensor: Tensor) -> bool:
    """Whether torch.distributed has sharded a tensor; without importing it, which takes long."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def check_here(tensor: Tensor, name: str) -> None:
    """Refuse a tensor that is about to be read outside the forward of its module.

    Args:
        tensor: A parameter or buffer.
        name: What it is, as the message says it.

    Raises:
        StructureError: If it is elsewhere; the message names the library that keeps it there.
    """
    if not is_elsewhere(tensor):
        return
    if hasattr(tensor, "ds_id"):
        reason = "DeepSpeed ZeRO stage 3 has partitioned it"
        hint = "use ZeRO stage 1 or 2, which leave the weights whole"
    elif tensor.is_meta:
        reason = "it is on the meta device, where accelerate puts offloaded weights"
        hint = (
            "take the offloading off (accelerate.hooks.remove_hook_from_submodules(model)), or load "
            "the model whole; to run it offloaded, merge(model) first"
        )
    else:
        reason = "torch.distributed has sharded it (a DTensor)"
        hint = _WHOLE_SHARDS
    raise StructureError(f"{name} cannot be read here: {reason}", hint)


def is_hooked(module: nn.Module) -> bool:
    """Whether something runs around a module's forward: its tensors may then be here only inside that."""
    forward = vars(module).get("forward")
    if forward is not None and getattr(forward, "__func__", None) is not type(module).forward:
        return True
    before, after = module._forward_pre_hooks, module._forward_hooks
    return bool(before or after or module._backward_pre_hooks or module._backward_hooks)


def check_complete(module: nn.Module, name: str) -> None:
    """Refuse a module that is about to run without its parameters: no hook of its own brings them in.

    Args:
        module: With its submodules.
        name: What its parameters are, as the message says it.

    Raises:
        StructureError: If some are elsewhere; the message names the library that keeps them there.
    """
    if not is_hooked(module):  # dictionaries: every unit passes here in every forward
        for parameter in module._parameters.values():
            if parameter is not None:
                check_here(parameter, name)
        for child in module._modules.values():
            if child is not None:
                check_complete(child, name)
