"""Tensors that have values, and those that tell their shape alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["SHAPES_ALONE", "has_values"]

SHAPES_ALONE = "FakeTensor"
"""Class of torch's tensors that stand for others of their shape, where what a pass would cost is asked."""


def has_values(tensor: Tensor) -> bool:
    """Whether a tensor's numbers can be read.

    >>> import torch
    >>> has_values(torch.ones(2)), has_values(torch.ones(2, device="meta"))
    (True, False)
    """
    return not tensor.is_meta and type(tensor).__name__ != SHAPES_ALONE
