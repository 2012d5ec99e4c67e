"""The position bias of T5 where layers have kept different heads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from transformers.models.t5.modeling_t5 import T5Attention

__all__ = ["keep_heads"]


def keep_heads(attention: T5Attention, kept: Sequence[int]) -> None:
    """Tell an attention which of its present heads stay.

    Args:
        attention: Its projections are cut elsewhere.
        kept: Indices among its heads.
    """
    if not isinstance(attention, SlimT5Attention):
        attention.all_heads = attention.config.num_heads
        attention.kept = list(range(attention.all_heads))
        attention.__class__ = SlimT5Attention
    attention.kept = [attention.kept[head] for head in kept]


class SlimT5Attention(T5Attention):  # type: ignore[misc]
    """A T5 attention without some of its heads; mT5's is a copy of T5's, and becomes this one too.

    The first layer makes the bias of all heads for every layer: each takes the part of the heads that
    it has kept and hands on the whole.

    Attributes:
        kept: Heads that are left, counted as in the whole model.
        all_heads: Heads of the whole model.
    """

    kept: list[int]
    all_heads: int

    def compute_bias(self, *args: Any, **kwargs: Any) -> Tensor:
        """Bias of the kept heads: (1, kept heads, queries, keys)."""
        whole: Tensor = super().compute_bias(*args, **kwargs)
        return whole[:, self.kept]

    def forward(
        self,
        hidden_states: Tensor,
        mask: Tensor | None = None,
        key_value_states: Tensor | None = None,
        position_bias: Tensor | None = None,
        past_key_values: Any = None,
        **kwargs: Any,
    ) -> tuple[Any, ...]:
        """As ``T5Attention``; the bias that comes in and goes out is that of all heads."""
        seen = 0 if past_key_values is None else past_key_values.get_seq_length(self.layer_idx)
        seen = seen.clone() if isinstance(seen, Tensor) else seen  # a static cache counts in place
        part = None if position_bias is None else position_bias[:, self.kept]
        output, part, weights = super().forward(
            hidden_states, mask, key_value_states, part, past_key_values, **kwargs
        )
        whole = self._whole(part, seen) if position_bias is None else position_bias
        return output, whole, weights

    def _whole(self, part: Tensor, seen: int | Tensor) -> Tensor:
        """The bias of all heads where the kept ones' was made; cross-attention has none, which is 0."""
        _, _, queries, keys = part.shape
        if not self.has_relative_attention_bias:
            return part.new_zeros(1, self.all_heads, queries, keys)
        whole: Tensor = super().compute_bias(queries, keys, part.device, seen)
        return whole
