"""Rounded values: what a unit trains, in 16, 8, 4 or 2 bits, with one scale for each of its tensors.

A unit computes with rounded values while it trains too; gradients pass through the rounding as if it were not there
(the straight-through estimate, Bengio et al. 2013). Levels are whole multiples of the scale, as many below zero as
above: a value of zero stays zero, so that a new unit is still the identity.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn

from sparsearch.errors import StructureError

__all__ = [
    "Rounding",
    "is_of_rounding",
    "pack",
    "pack_rounded",
    "packed_values",
    "round_values",
    "rounded_tensors",
    "settled",
    "take_packed",
    "trained_tensors",
    "unpack",
]

_LATENT, _ROUNDING = ":latent", ":rounding"
"""Ends of names: of what trains in the place of a rounded tensor, and of what rounds it."""

_CLIP = {4: 2.47, 2: 1.22}
"""Root mean squares of a tensor at which few levels end; further out they would lose the many for the few. With these
the squared error of normal values is least (uniform quantisers of 15 and 3 levels, Max 1960)."""


def _levels(bits: int) -> int:
    """Levels above zero."""
    return (1 << (bits - 1)) - 1


class Rounding(nn.Module):
    """Rounds a tensor to whole multiples of a scale.

    Attributes:
        bits: Of a value.
        scale: () The scale with which values were loaded. It holds for as long as all values lie on its levels, so that
            what was loaded stays what it was; values that have moved since get a new one.
    """

    scale: Tensor

    def __init__(self, bits: int) -> None:
        super().__init__()
        self.bits = bits
        self.register_buffer("scale", torch.zeros(()))

    def forward(self, values: Tensor) -> Tensor:
        """The rounded values, in the type of ``values``; gradients pass as they are."""
        with torch.no_grad():
            codes, scale = self.codes(values)
            rounded = (codes * scale).to(values.dtype)
        return rounded + (values - values.detach())

    @torch.no_grad()
    def codes(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Whole numbers as float32, in the shape of ``values``, and the scale that turns them into values again."""
        x = values.detach().float()
        known = self.scale.float()
        kept = _codes(x, known, self.bits)
        fresh = _scale_of(x, self.bits)
        # In half precision scale and values were rounded, each by itself.
        step = 2 * torch.finfo(values.dtype).eps
        scale = torch.where(
            torch.isclose(kept * known, x, rtol=step, atol=0.0).all(), known, fresh
        )
        return _codes(x, scale, self.bits), scale


def _codes(x: Tensor, scale: Tensor, bits: int) -> Tensor:
    most = _levels(bits)
    return (x / scale.clamp_min(torch.finfo(x.dtype).tiny)).round().clamp(-most, most)


def _scale_of(x: Tensor, bits: int) -> Tensor:
    """The scale for values that have none yet: the largest value is a level, unless it lies far out."""
    most = x.abs().max()
    if bits in _CLIP:
        most = torch.minimum(most, _CLIP[bits] * x.square().mean().sqrt())
    return most / _levels(bits)


def round_values(unit: nn.Module, bits: int) -> None:
    """Round all that a unit trains, in its forward too.

    Its parameters stay, under other names; what the unit reads in their place is rounded. (The parametrizations of
    torch do the same, but take no parameter that is called ``values``.)
    """
    for module in list(unit.modules()):
        names = tuple(name for name, _ in module.named_parameters(recurse=False))
        if names:
            module.__class__ = _rounded_class(type(module), names)  # type: ignore[arg-type]  # classes are hashable
        for name in names:
            parameter = module._parameters.pop(name)
            module.register_parameter(name + _LATENT, parameter)
            module.add_module(name + _ROUNDING, Rounding(bits))


@functools.cache
def _rounded_class(module: type[nn.Module], names: tuple[str, ...]) -> type[nn.Module]:
    """A class of modules that compute with these parameters rounded."""

    def rounded(name: str) -> property:
        def read(self: nn.Module) -> Tensor:
            values: Tensor = getattr(self, name + _ROUNDING)(getattr(self, name + _LATENT))
            return values

        return property(read)

    return type(module.__name__, (module,), {name: rounded(name) for name in names})


def rounded_tensors(unit: nn.Module) -> list[tuple[nn.Parameter, Rounding]]:
    """What a unit trains in the place of each rounded tensor, and what rounds it; nothing where nothing is rounded."""
    return [
        (module.get_parameter(name.removesuffix(_ROUNDING) + _LATENT), rounding)
        for module in unit.modules()
        for name, rounding in module.named_children()
        if isinstance(rounding, Rounding)
    ]


@torch.no_grad()
def settled(unit: nn.Module) -> nn.Module:
    """A copy of a unit whose values are rounded once and for all; it shares the unit's buffers, and trains nothing."""
    copied = copy.deepcopy(unit, {id(buffer): buffer for buffer in unit.buffers()})
    for module in list(copied.modules()):
        names = [
            name.removesuffix(_ROUNDING)
            for name, child in module.named_children()
            if isinstance(child, Rounding)
        ]
        values = [getattr(module, name) for name in names]
        if names:
            module.__class__ = type(module).__bases__[0]
        for name, value in zip(names, values, strict=True):
            del module._parameters[name + _LATENT], module._modules[name + _ROUNDING]
            module.register_parameter(name, nn.Parameter(value))
    return copied.requires_grad_(False)


def trained_tensors(unit: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """What a unit trains, each under the name by which it computes with it, rounded or not."""
    for name, parameter in unit.named_parameters():
        yield name.removesuffix(_LATENT), parameter


def is_of_rounding(name: str) -> bool:
    """Whether a tensor of that name in a state dict stands behind rounded values."""
    return name.endswith(_LATENT) or f"{_ROUNDING}." in name


@torch.no_grad()
def packed_values(unit: nn.Module, bits: int) -> dict[str, Tensor]:
    """What is stored of a rounded unit's values: ``codes``, one after the other, and ``scales`` (tensors)."""
    return pack_rounded(rounded_tensors(unit), bits)


@torch.no_grad()
def pack_rounded(tensors: Iterable[tuple[Tensor, Rounding]], bits: int) -> dict[str, Tensor]:
    """The same of tensors in their order, and of what rounds each."""
    codes, scales = zip(*(rounding.codes(values) for values, rounding in tensors), strict=True)
    return {"codes": pack(codes, bits), "scales": torch.stack(scales).cpu()}


@torch.no_grad()
def take_packed(unit: nn.Module, bits: int, codes: Tensor, scales: Tensor) -> None:
    """Give a rounded unit the values that ``packed_values`` gave: it then computes with them, to the bit.

    Raises:
        StructureError: If they are those of another unit; it then is as it was.
    """
    rounded = rounded_tensors(unit)
    parts = unpack(codes, [values.shape for values, _ in rounded], bits)
    for (values, rounding), part, scale in zip(rounded, parts, scales, strict=True):
        values.copy_(part.to(scale.device) * scale)
        rounding.scale.copy_(scale)


def pack(codes: Sequence[Tensor], bits: int) -> Tensor:
    """Codes of several tensors, one after the other, as bytes: the lowest bits of a byte come first.

    >>> pack([torch.tensor([-1.0, 0.0, 1.0]), torch.tensor([1.0, 1.0])], 2).tolist()
    [164, 2]
    """
    flat = torch.cat([c.flatten() for c in codes]).to(torch.int32).cpu() + _levels(bits)
    if bits == 16:
        return torch.stack([flat & 255, flat >> 8], dim=1).flatten().to(torch.uint8)
    each = 8 // bits
    padded = nn.functional.pad(flat, (0, -len(flat) % each)).view(-1, each)
    return (padded << (bits * torch.arange(each))).sum(1).to(torch.uint8)


def unpack(packed: Tensor, shapes: Sequence[torch.Size], bits: int) -> list[Tensor]:
    """What ``pack`` packed, as float32.

    Raises:
        StructureError: If there are more or fewer bytes than tensors of these shapes take.

    >>> [c.tolist() for c in unpack(torch.tensor([164, 2], dtype=torch.uint8), [(3,), (2,)], 2)]
    [[-1.0, 0.0, 1.0], [1.0, 1.0]]
    """
    counts = [torch.Size(shape).numel() for shape in shapes]
    if packed.dtype != torch.uint8 or packed.shape != (-(-sum(counts) * bits // 8),):
        raise StructureError(
            f"{sum(counts)} values of {bits} bits are not {packed.numel()} of {packed.dtype}",
            "export the structure anew, with --to spec",
        )
    wide = packed.to(torch.int32)
    if bits == 16:
        flat = wide[::2] + (wide[1::2] << 8)
    else:
        each = 8 // bits
        flat = (wide[:, None] >> (bits * torch.arange(each)) & (2**bits - 1)).flatten()
    parts = torch.split((flat[: sum(counts)] - _levels(bits)).float(), counts)
    return [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]
