"""LoRA of experts and routers as PEFT's ``target_parameters``: one each, with one rank for all its matrices."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from sparsearch.spaces.families.position import Position, by_output

if TYPE_CHECKING:
    from sparsearch.results.export.peft import AdaptedModule

__all__ = [
    "AdaptedParameter",
    "adapted_parameter",
    "fill_parameters",
    "not_as_parameter",
    "parameter_notes",
    "wrapped_parameters",
]


@dataclass(frozen=True)
class AdaptedParameter:
    """One parameter of the backbone that the adapter changes.

    Attributes:
        path: Full name in the model.
        matrices: Of its experts, in their order; of a router one. Those without a LoRA have rank 0.
        least_rank: Rank that all have at least.
    """

    path: str
    matrices: tuple[AdaptedModule, ...]
    least_rank: int = 1

    @property
    def rank(self) -> int:
        """PEFT's, which is that of every matrix: lower ones are filled up with zeros."""
        return max(self.least_rank, *(m.rank for m in self.matrices))

    def padded(self, rank: int) -> AdaptedParameter:
        """With so high a rank."""
        return replace(self, least_rank=rank)

    def factors(self) -> tuple[Tensor, Tensor]:
        """A (experts x rank, in), expert by expert, and B (out, rank x experts), rank by rank, as PEFT keeps them."""
        padded = [m.padded(self.rank) for m in self.matrices]
        downs, ups = (
            [m.A for m in padded if m.A is not None],
            [m.B for m in padded if m.B is not None],
        )
        return torch.cat(downs), torch.stack(ups, dim=-1).flatten(1)


def adapted_parameter(
    base: nn.Module, position: Position, module_path: str, matrix: type[AdaptedModule]
) -> AdaptedParameter:
    """The parameter of an expert or router, nothing of it adapted yet.

    Args:
        base: The base model.
        position: Of one of its matrices.
        module_path: Full name of its module in the model.
        matrix: Class of its matrices.
    """
    host = base.get_submodule(position.module)
    own = host.get_parameter(position.parameter)
    path = f"{module_path}.{position.parameter}"
    each = by_output(position, host, own if position.expert is None else own[0])
    width, width_in = each.shape
    count = 1 if position.expert is None else len(own)
    matrices = (
        matrix(path, width, A=torch.zeros(0, width_in), B=torch.zeros(width, 0))
        for _ in range(count)
    )
    return AdaptedParameter(path, tuple(matrices))


def not_as_parameter(position: Position, host: nn.Module) -> str:
    """Why PEFT 0.21 would read a parameter otherwise; "" if it reads it as it is."""
    own = host.get_parameter(position.parameter)
    if position.expert is None:
        return (
            "" if own.dim() == 2 and not position.transposed else "PEFT takes it for another form"
        )
    if len(own) == 1:
        return "PEFT takes a single expert for a matrix"
    if bool(getattr(host, "is_transposed", False)) != position.transposed:
        return "PEFT takes rows of its matrices for columns"
    return ""


def parameter_notes(parameters: Sequence[AdaptedParameter]) -> tuple[str, ...]:
    """What a user of an adapter of experts should know."""
    if not parameters:
        return ()
    matrices = [m for parameter in parameters for m in parameter.matrices]
    adapted = sum(m.rank > 0 for m in matrices)
    return (
        f"PEFT keeps one rank for all matrices of a tensor: {adapted} of its {len(matrices)} matrices of experts and "
        "routers have a LoRA; lower ranks, and the others, are filled up with zeros, which stay zero in training",
        "transformers' load_adapter loads no adapter of experts or routers",
    )


def wrapped_parameters(modules: Mapping[str, nn.Module]) -> dict[str, Any]:
    """Full name of each parameter that PEFT adapts -> its wrapper; wrappers of one module lie in each other.

    Args:
        modules: Of the PEFT model, by their names in the model inside it.
    """
    return dict(_wrapped(modules))


def _wrapped(modules: Mapping[str, nn.Module]) -> Iterator[tuple[str, Any]]:
    for name, module in modules.items():
        if type(module).__name__ == "ParamWrapper":
            yield f"{name.replace('.base_layer', '')}.{module.parameter_name}", module


@torch.no_grad()
def fill_parameters(modules: Mapping[str, nn.Module], parameters: list[AdaptedParameter]) -> None:
    """Write the trained tensors into PEFT's wrappers."""
    wrappers = wrapped_parameters(modules)
    for parameter in parameters:
        layer = wrappers[parameter.path]
        for target, value in zip(("lora_A", "lora_B"), parameter.factors(), strict=True):
            getattr(layer, target)["default"].weight.copy_(value)
