"""What every kind answers."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from sparsearch.spaces.families.position import Position

if TYPE_CHECKING:
    from torch import Tensor, nn

    from sparsearch.spaces.kinds.module_base import Basis, Unit

__all__ = ["FULL_BITS", "KindRole", "Kind", "Stage", "Statistics"]

FULL_BITS = 32
"""Of a value that is not rounded."""

KindRole = Literal["attach", "remove", "mask"]
"""What a kind does to the backbone: add a module, take heads or neurons out, or set weights to zero."""

Statistics = Literal["weight change", "input covariance", "second moments"]
"""What a kind learns from calibration data: how its host's weight would change, or what passes through its host."""

Stage = Literal["heads", "input", "cut", "parallel", "mask", "sequential"]
"""Where a unit acts: on what an attention's heads put out, fed with its queries; on the position's input, as a factor
on that, beside it (fed with its input), on its weight after what is added to that, or after it (fed with its output).
S3PET section 3: y' = f(x) + sum z_k D_k(x), then y" = y' + sum z_m D_m(y')."""


class Kind:
    """What may be attached or removed, and what it costs.

    Options of a kind are the fields of its dataclass, see ``options``.
    """

    name: ClassVar[str]
    base: ClassVar[str] = ""
    """Name of the kind that this one is in fewer bits; empty for a kind in full ones."""
    bits: ClassVar[int] = FULL_BITS
    """In which a trained value is stored, see ``precision``."""
    tensors: ClassVar[int] = 1
    """Tensors that a unit trains; in fewer bits each has a scale, which is stored too."""
    role: ClassVar[KindRole] = "attach"
    """What it does to the backbone; FLOPs of what is removed are negative."""
    statistics: ClassVar[Statistics] = "weight change"
    """What its frozen parts are made from, where it has some."""
    not_in_peft: ClassVar[str] = "PEFT has no such adapter"
    """Why PEFT cannot hold it; empty if it can, as ``results.export.peft`` writes it."""
    not_on_quantised: ClassVar[str] = (
        "it does not say that it leaves the numbers of a weight alone"
    )
    """Why it cannot go to a backbone in 8 or 4 bits; empty if it can: it takes a weight's values from ``weight_at``."""
    mergeable: ClassVar[bool] = True
    """Whether the unit folds into the backbone's weights and then adds no inference FLOPs of its own."""
    default_on: ClassVar[tuple[str, ...]] = ("*",)
    """Patterns of positions used where a space names none."""
    earlier: ClassVar[Mapping[str, Any]] = {}
    """What options that a structure file lacks meant before they existed, where that is not their default."""

    @property
    def set_options(self) -> dict[str, Any]:
        """Options that are not at their defaults. Identities hold these alone: a later version may add an option."""
        fields = dataclasses.fields(self)  # type: ignore[arg-type]
        return {f.name: v for f in fields if (v := getattr(self, f.name)) != f.default}

    @property
    def aligns(self) -> bool:
        """Whether units have frozen parts that the task chooses, by ``basis``."""
        return False

    @property
    def why_not_quantised(self) -> str:
        """Why it cannot go to a backbone in 8 or 4 bits, with its options; empty if it can."""
        if not self.not_on_quantised and self.aligns and self.statistics == "weight change":
            return "its options ask for the gradient of a weight, and a quantised one has none"
        return self.not_on_quantised

    def basis(self, position: Position, matrix: Tensor) -> Basis:
        """Frozen parts by a matrix (out, in): the host's weight, its gradient, or its change in a brief fine-tuning."""
        return ()

    def accepts(self, position: Position) -> bool:
        """Whether the kind can go there."""
        raise NotImplementedError

    def stage(self, position: Position) -> Stage:
        """Where the unit acts at this position."""
        raise NotImplementedError

    def least(self, position: Position) -> int:
        """Heads or neurons that always stay; for kinds that remove."""
        return 0

    def untrained(self) -> Kind:
        """The kind with nothing about it trained, where it masks weights."""
        return self

    def pruned_fraction(self, size: int) -> float | None:
        """Fraction of its matrix that a candidate sets to zero; None for what is no mask."""
        return None

    def breaks_groups(self, part: int) -> str:
        """The pattern that removing so many neighbouring inputs of its host would break; "" if none."""
        return ""

    def sizes(self, position: Position) -> tuple[int, ...]:
        """Sizes of the candidates offered at this position; equal sizes add up (rank units)."""
        return (1,)

    def largest(self, position: Position) -> int:
        """Size of the largest unit there: all candidates together, unless uniform structures may go beyond."""
        return sum(self.sizes(position))

    def largest_useful(self, position: Position) -> int:
        """Size beyond which more buys nothing; uniform structures grow up to it."""
        return self.largest(position)

    def levels(self, position: Position) -> Iterable[int]:
        """Sizes through which uniform structures grow, from the smallest."""
        return range(1, self.largest_useful(position) + 1)

    def params(self, position: Position, size: int) -> int:
        """Trainable parameters of a unit of this size."""
        raise NotImplementedError

    def frozen_bytes(self, position: Position, size: int) -> int:
        """Bytes of what is stored with the unit but not trained."""
        return 0

    def pruned_weights(self, position: Position, size: int) -> int:
        """Weights of the backbone that are set to zero; dense kernels multiply by them all the same."""
        return 0

    def flops_per_token(self, position: Position, size: int) -> int:
        """FLOPs (2 x MACs) of the matrix products that the attached unit adds per token."""
        return 0

    def flops_per_pair(self, position: Position, size: int) -> int:
        """FLOPs added per token and token of the sequence, as attention's scores cost them."""
        return 0

    def low_rank(self, unit: Mapping[str, Tensor]) -> tuple[Tensor, Tensor] | None:
        """A (k, in) and B (out, k) whose product is the change of the weight, for formats that know LoRA alone.

        Args:
            unit: What it computes with, by name. None for what is no such product, or is LoRA.
        """
        return None

    def build(self, position: Position, size: int, host: nn.Module) -> Unit:
        """A new unit, the identity at initialisation; ``host`` is the backbone's module."""
        raise NotImplementedError
