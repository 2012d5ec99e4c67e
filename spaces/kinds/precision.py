"""Kinds in fewer bits: ``lora@4`` is a LoRA whose values are stored in 4."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, ClassVar

from sparsearch.errors import ConfigError, StructureError
from sparsearch.spaces.kinds.base import FULL_BITS, Kind

if TYPE_CHECKING:
    from torch import nn

    from sparsearch.spaces.families.position import Position
    from sparsearch.spaces.kinds.module_base import Unit

__all__ = ["BITS", "in_bits", "kind_in_bits", "read_bits", "split_bits"]

BITS = (FULL_BITS, 16, 8, 4, 2)
"""Bits in which values may be stored."""


class _Rounded(Kind):
    """What a kind in fewer bits does otherwise than in full ones: its units compute with rounded values."""

    full: ClassVar[type[Kind]]

    def build(self, position: Position, size: int, host: nn.Module) -> Unit:
        """The kind's unit, rounded.

        Raises:
            StructureError: If it trains more or fewer tensors than the kind says: each has a scale, which counts.
        """
        from sparsearch.spaces.kinds.rounding import round_values

        unit = super().build(position, size, host)
        if (found := len(list(unit.parameters()))) != self.tensors:
            raise StructureError(
                f"a unit of {self.base} trains {found} tensors, the kind says {self.tensors}",
                f"set `tensors = {found}` in the kind",
            )
        round_values(unit, self.bits)
        return unit

    def __reduce__(self) -> tuple[Any, ...]:
        """By name: the class is made when it is asked for."""
        return _again, (self.full, self.bits, vars(self))


def _again(kind: type[Kind], bits: int, options: dict[str, Any]) -> Kind:
    return in_bits(kind, bits)(**options)  # type: ignore[arg-type]


@functools.cache
def in_bits(kind: type[Kind], bits: int) -> type[Kind]:
    """A kind whose values are stored in so many bits; the same class each time.

    >>> from sparsearch.spaces.kinds.lora.spec import Lora
    >>> in_bits(Lora, 4).name, in_bits(Lora, 4)(max_rank=2).bits, in_bits(Lora, 32) is Lora
    ('lora@4', 4, True)

    Raises:
        ConfigError: If values cannot have so many bits, or the kind attaches nothing that trains.
    """
    if bits == FULL_BITS:
        return kind
    if bits not in BITS or kind.role != "attach":
        allowed = BITS if kind.role == "attach" else (FULL_BITS,)
        raise ConfigError(
            [f"kind {kind.name}: values have {_listed(allowed)} bits, not {bits!r}"],
            "for example bits: [32, 8, 4]" if kind.role == "attach" else "leave bits out",
        )
    own = {"name": f"{kind.name}@{bits}", "base": kind.name, "bits": bits, "full": kind}
    return type(f"{kind.__name__}{bits}", (_Rounded, kind), {**own, "__doc__": kind.__doc__})


def kind_in_bits(kind: Kind, bits: int) -> Kind:
    """A kind with its options, its values in so many bits.

    Raises:
        ConfigError: If values cannot have so many bits, or the kind attaches nothing that trains.
    """
    full = type(kind).full if isinstance(kind, _Rounded) else type(kind)
    return in_bits(full, bits)(**vars(kind))  # type: ignore[arg-type]


def _listed(bits: tuple[int, ...]) -> str:
    return ", ".join(map(str, bits))


def split_bits(name: str) -> tuple[str, int]:
    """A kind's name in a structure: the kind, and the bits of its values.

    >>> split_bits("lora@4"), split_bits("lora")
    (('lora', 4), ('lora', 32))
    """
    kind, _, bits = name.partition("@")
    return kind, int(bits) if bits.isdecimal() else FULL_BITS


def read_bits(kind: str, value: Any) -> tuple[int, ...]:
    """What ``bits`` of a kind says in a space: one number or several, each once.

    Raises:
        ConfigError: If it is neither.
    """
    listed = value if isinstance(value, list) else [value]
    if not listed or any(type(bits) is not int for bits in listed):
        raise ConfigError(
            [f"kind {kind}: bits must be a whole number or a list of them, not {value!r}"],
            "for example bits: [32, 8, 4]",
        )
    return tuple(dict.fromkeys(listed))
