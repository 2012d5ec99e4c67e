"""What is computed of a backbone's weight once, for all that is attached there until the weight changes."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

__all__ = ["remembered"]

_KNOWN: Any = WeakIdKeyDictionary()


def remembered(
    weight: Tensor, key: Hashable, make: Callable[[], tuple[Tensor, Tensor]]
) -> tuple[Tensor, Tensor]:
    """What ``make`` gives, from memory where it was asked for since the weight last changed.

    Args:
        weight: A parameter of the backbone; what is remembered goes with it.
        key: All else that the answer depends on.
        make: Computes it.
    """
    state = (weight._version, weight.dtype)
    known = _KNOWN.get(weight)
    if known is None or known[0] != state:
        known = _KNOWN[weight] = (state, {})
    answers: dict[Hashable, tuple[Tensor, Tensor]] = known[1]
    if key not in answers:
        answers[key] = make()
    return answers[key]
