"""Keys and values of virtual tokens."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from sparsearch.spaces.kinds.module_base import Unit, in_type_of

__all__ = ["PrefixUnit"]


class PrefixUnit(Unit):
    """keys and values (length, key heads, features of a head).

    The softmax has one more entry, of score 0 and value 0: a query that matches no key gets nothing, and where all
    gates are closed there still is a sum to divide by.
    """

    shared: ClassVar[Mapping[str, int]] = {"keys": 0, "values": 0}

    def __init__(self, length: int, key_heads: int, width: int) -> None:
        super().__init__()
        self.keys = nn.Parameter(torch.randn(length, key_heads, width))
        self.values = nn.Parameter(torch.zeros(length, key_heads, width))

    def forward(self, x: Tensor, gate: Tensor | None) -> Tensor:
        """Queries (..., heads x width) -> what each head is given in addition (..., heads x width).

        A gate multiplies its token's exponential, inside the softmax: no logarithm, so that it may be 0.
        """
        keys, values = in_type_of(x, self.keys), in_type_of(x, self.values)
        _, key_heads, width = self.keys.shape
        queries = x.reshape(*x.shape[:-1], key_heads, -1, width)
        scores = torch.einsum("...kgw,nkw->...kgn", queries, keys) / math.sqrt(width)
        scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
        top = scores.detach().amax(-1, keepdim=True).clamp_min(0)
        exponentials = (scores - top).exp()
        if gate is not None:
            exponentials = exponentials * gate
        weights = exponentials / (torch.exp(-top) + exponentials.sum(-1, keepdim=True))
        return torch.einsum("...kgn,nkw->...kgw", weights.to(values.dtype), values).flatten(-3)
