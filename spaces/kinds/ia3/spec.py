"""IA3 (Liu et al. 2022, section 3.3): trained rescaling of keys, values and inner activations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from sparsearch.spaces.families.position import Position
from sparsearch.spaces.kinds.base import Kind, Stage

if TYPE_CHECKING:
    from torch import nn

    from sparsearch.spaces.kinds.ia3.module import IA3Unit

__all__ = ["IA3"]


@dataclass(frozen=True)
class IA3(Kind):
    """y -> (1 + scale) * y on a linear's output; on ``ffn.down``, of its input."""

    name: ClassVar[str] = "ia3"
    not_on_quantised: ClassVar[str] = ""
    not_in_peft: ClassVar[str] = ""
    default_on: ClassVar[tuple[str, ...]] = (
        "*.attn.k",
        "*.attn.v",
        "*.cross.k",
        "*.cross.v",
        "*.ffn.down",
    )

    def accepts(self, position: Position) -> bool:
        """Any linear."""
        return position.role == "linear"

    def stage(self, position: Position) -> Stage:
        """The inner activation is the input of ``ffn.down``; elsewhere the output is rescaled."""
        return "input" if position.name.endswith("ffn.down") else "sequential"

    def params(self, position: Position, size: int) -> int:
        """One per rescaled feature."""
        inner = self.stage(position) == "input"
        return position.in_features if inner else position.out_features

    def build(self, position: Position, size: int, host: nn.Module) -> IA3Unit:
        """Zero, a factor of one."""
        from sparsearch.spaces.kinds.ia3.module import IA3Unit

        return IA3Unit(self.params(position, size), inner=self.stage(position) == "input")
