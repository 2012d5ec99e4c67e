"""Weights in 8 or 4 bits: how many there are, their values, and how their modules compute.

bitsandbytes itself is imported where a weight is dequantised, and nowhere else.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

__all__ = [
    "KeptAsLoaded",
    "bits_of",
    "compute_in",
    "exact_products",
    "full_count",
    "is_quantised",
    "is_packed",
    "quantised_linears",
    "stored_parts",
    "weight_values",
]

_PACKAGE = "bitsandbytes"
_BITS = {"Int8Params": 8, "Params4bit": 4}
_BIAS = "sparsearch_bias"
_PACKS = "support_avx512bf16_for_cpu"
"""Attribute of a linear: whether it repacks its weight at the first evaluation on a CPU."""


def bits_of(tensor: object) -> int | None:
    """Bits in which bitsandbytes keeps a weight; None for any other tensor."""
    kind = type(tensor)
    if kind.__module__.partition(".")[0] != _PACKAGE:
        return None
    return None if getattr(tensor, "has_fp16_weights", False) else _BITS.get(kind.__name__)


def is_quantised(tensor: object) -> bool:
    """Whether bitsandbytes keeps a weight in 8 or 4 bits."""
    return bits_of(tensor) is not None


def is_packed(tensor: object) -> bool:
    """Whether bitsandbytes has repacked a 4-bit weight for evaluation on a CPU: its scales are then rounded anew."""
    return bool(getattr(getattr(tensor, "quant_state", None), "packing_format_for_cpu", False))


def quantised_linears(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Path and module of every linear of a model whose weight is in 8 or 4 bits."""
    for path, module in model.named_modules():
        if is_quantised(module._parameters.get("weight")):
            yield path, module


def full_count(parameter: Tensor) -> int:
    """How many numbers a parameter stands for: a 4-bit one has half as many elements."""
    state = getattr(parameter, "quant_state", None) if is_quantised(parameter) else None
    return parameter.numel() if state is None else math.prod(state.shape)


def weight_values(module: nn.Module, name: str) -> Tensor:
    """A module's parameter; where it is in 8 or 4 bits, a new tensor of the values that it stands for, in float32.

    Args:
        module: Its owner.
        name: Of the parameter.
    """
    parameter: Any = module.get_parameter(name)
    bits = bits_of(parameter)
    if bits is None:
        return parameter  # type: ignore[no-any-return]
    from bitsandbytes import functional

    if bits == 4:
        values: Tensor = functional.dequantize_4bit(parameter.data, parameter.quant_state)
    else:
        values = functional.int8_vectorwise_dequant(parameter.data, _row_scales(module))
    return values.float()


def stored_parts(name: str, module: nn.Module, parameter: Any) -> Iterator[tuple[str, Tensor]]:
    """The tensors that make a weight, by name: of one in 8 or 4 bits its codes and its scales, else itself.

    Args:
        name: Of the parameter.
        module: Its owner.
        parameter: The parameter.
    """
    bits = bits_of(parameter)
    yield name, parameter
    if bits == 8:
        yield f"{name}.scales", _row_scales(module)
    elif bits == 4:
        state, nested = parameter.quant_state, parameter.quant_state.state2
        yield f"{name}.scales", state.absmax
        if nested is not None:
            yield f"{name}.scales.scales", nested.absmax
            yield f"{name}.scales.offset", state.offset


def _row_scales(module: Any) -> Tensor:
    """(out) scales of an 8-bit weight, which its linear takes from it when it first runs."""
    own, taken = module.weight.SCB, module.state.SCB
    found: Tensor = taken if own is None else own
    return found


class KeptAsLoaded:
    """Keeps a model's quantised weights, and their biases, as they are, as long as it is not removed.

    On a CPU with AVX512-BF16, bitsandbytes repacks 4-bit weights at the first evaluation: the scales are rounded to
    bfloat16, and no gradient passes such a linear any more. It also casts biases to the type of its input, for good.
    """

    def __init__(self, model: nn.Module) -> None:
        linears = [module for _, module in quantised_linears(model)]
        self.before = [(m, getattr(m, _PACKS)) for m in linears if hasattr(m, _PACKS)]
        for module, _ in self.before:
            setattr(module, _PACKS, False)
        self.handles = [
            handle
            for module in linears
            if module.bias is not None
            for handle in (
                module.register_forward_pre_hook(_note_bias),
                module.register_forward_hook(_restore_bias, always_call=True),
            )
        ]

    def remove(self) -> None:
        """The linears as they were."""
        for module, packs in self.before:
            setattr(module, _PACKS, packs)
        for handle in self.handles:
            handle.remove()


def _note_bias(module: nn.Module, args: object) -> None:
    vars(module)[_BIAS] = module.bias.data


def _restore_bias(module: nn.Module, args: object, output: object) -> None:
    data = vars(module).pop(_BIAS, None)
    if data is not None:
        module.bias.data = data


def compute_in(model: nn.Module, dtype: torch.dtype) -> None:
    """Have linears in 4 bits multiply in a type; those in 8 bits have one of their own."""
    for _, module in quantised_linears(model):
        if hasattr(module, "compute_dtype"):
            module.compute_dtype = dtype


@contextlib.contextmanager
def exact_products(model: nn.Module) -> Iterator[None]:
    """On a CPU, linears in 8 or 4 bits multiply by the values of their weights inside the context.

    Otherwise 8-bit ones round what comes in too, each row to 8 bits, so that a difference of 1e-7 may become one of
    1e-3; and 4-bit ones repack their weights, see ``KeptAsLoaded``.
    """
    linears = [module for _, module in quantised_linears(model)]
    training = [module.training for module in linears]
    as_loaded = KeptAsLoaded(model)
    for module in linears:
        module.training = True
    try:
        yield
    finally:
        as_loaded.remove()
        for module, flag in zip(linears, training, strict=True):
            module.training = flag
