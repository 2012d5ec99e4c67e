"""Prefix tuning (Li & Liang 2021) whose virtual tokens have a softmax of their own (Zhang et al. 2023)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from sparsearch.spaces.families.position import Position
from sparsearch.spaces.kinds.base import Kind, Stage
from sparsearch.spaces.kinds.options import Count

if TYPE_CHECKING:
    from torch import nn

    from sparsearch.spaces.kinds.prefix.module import PrefixUnit

__all__ = ["Prefix"]


@dataclass(frozen=True)
class Prefix(Kind):
    """h' = h + sum_i e_i v_i / (1 + sum_i e_i), e_i = z_i exp(q k_i / sqrt(d)), for each head's output h and query q.

    Keys k_i and values v_i belong to a key head; query heads of a group share them. In prefix tuning the 1 is the
    tokens' own sum, and h loses what the prefix gains (He et al. 2022, eq. 7): a new prefix would change the output.
    Here, as in LLaMA-Adapter's zero-init attention (arXiv 2303.16199), the tokens' softmax stays as it is, so that
    values of zero are the identity, and so are closed gates z.

    Attributes:
        max_length: Virtual tokens per attention, each a candidate, so that a search finds how many too.
    """

    name: ClassVar[str] = "prefix"
    tensors: ClassVar[int] = 2
    mergeable: ClassVar[bool] = False
    not_in_peft: ClassVar[str] = (
        "PEFT's prefixes share the softmax of the tokens; these have one of their own"
    )
    max_length: Count = 4

    def accepts(self, position: Position) -> bool:
        """Any attention whose queries are scored with keys."""
        return position.queries is not None

    def stage(self, position: Position) -> Stage:
        """Between the queries and what reads the heads."""
        return "heads"

    def sizes(self, position: Position) -> tuple[int, ...]:
        """One candidate per virtual token."""
        return (1,) * self.max_length

    def params(self, position: Position, size: int) -> int:
        """A key and a value per token and key head."""
        assert position.queries is not None, position.name
        return 2 * size * position.queries.key_heads * position.queries.width

    def flops_per_token(self, position: Position, size: int) -> int:
        """Scores and mixing of all heads."""
        assert position.queries is not None, position.name
        return 4 * size * position.queries.features

    def build(self, position: Position, size: int, host: nn.Module) -> PrefixUnit:
        """Keys N(0, 1), values zero."""
        from sparsearch.spaces.kinds.prefix.module import PrefixUnit

        assert position.queries is not None, position.name
        return PrefixUnit(size, position.queries.key_heads, position.queries.width)
