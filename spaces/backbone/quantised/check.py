"""What cannot go to a backbone in 8 or 4 bits, and why."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from sparsearch.errors import ModelStateError
from sparsearch.spaces.backbone.parameters import head_parameters
from sparsearch.spaces.backbone.quantised.weights import (
    is_packed,
    is_quantised,
    quantised_linears,
)

if TYPE_CHECKING:
    from torch import nn

    from sparsearch.spaces.kinds.base import Kind

__all__ = ["check_quantised", "kind_problems"]


def kind_problems(kinds: Iterable[Kind]) -> list[str]:
    """Each kind that cannot go to a quantised backbone, with its reason."""
    problems = (
        f"{k.name} does not go with a quantised backbone: {k.why_not_quantised}"
        for k in kinds
        if k.why_not_quantised
    )
    return list(dict.fromkeys(problems))


def check_quantised(model: nn.Module, kinds: Iterable[Kind]) -> None:
    """Refuse what a quantised model cannot carry; a plain one carries all.

    Args:
        model: With or without a head.
        kinds: What is to be attached.

    Raises:
        ModelStateError: If a kind needs plain weights, the head is quantised too, or an evaluation has rounded the
            weights.
    """
    linears = [*quantised_linears(model)]
    if not linears:
        return
    packed = [path for path, module in linears if is_packed(module.weight)]
    if packed:
        raise ModelStateError(
            f"an evaluation on the CPU has repacked the 4-bit weights and rounded their scales ({packed[0]})",
            "load the model anew, and attach before the first evaluation",
        )
    if problems := kind_problems(kinds):
        raise ModelStateError(
            "; ".join(problems), "choose other kinds, or load the model without quantisation"
        )
    trained = [name for name, parameter in head_parameters(model) if is_quantised(parameter)]
    if trained:
        skipped = sorted(name.rpartition(".")[0] for name in trained)
        raise ModelStateError(
            f"the task's head is quantised, and cannot train: {trained[0]}",
            f"load the model with BitsAndBytesConfig(..., llm_int8_skip_modules={skipped})",
        )
