"""The weights of what is attached, of the head, and at times of the backbone, by their names in a file."""

from __future__ import annotations

import json
import operator
import warnings
from collections.abc import Iterator, Mapping, Sequence

import safetensors.torch
import torch
from torch import Tensor, nn

from sparsearch.errors import StructureError
from sparsearch.spaces.attachment.attached_unit import AttachedUnit
from sparsearch.spaces.attachment.attachment import attachment_of
from sparsearch.spaces.attachment.elsewhere import check_here
from sparsearch.spaces.attachment.remade import remade_metadata
from sparsearch.spaces.backbone.parameters import (
    backbone_parameters,
    head_parameters,
    language_head_parameters,
)
from sparsearch.spaces.kinds.base import FULL_BITS
from sparsearch.spaces.kinds.rounding import (
    is_of_rounding,
    packed_values,
    take_packed,
    trained_tensors,
)

__all__ = ["BACKBONE", "HEAD", "load_weights", "pack_weights", "values_of", "weights_of"]

HEAD = "head:"
"""Prefix of the task head's tensors."""

BACKBONE = "backbone:"
"""Prefix of the backbone's own tensors, where it was trained too."""


def _named_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """File name -> tensor: ``layers.0.attn.q:lora.A`` for attached modules, ``head:...`` for the head.

    Rounded values are none of them, see ``_packed_tensors``.
    """
    attachment = attachment_of(model)
    if attachment is not None:
        apart = {
            f"{slot.key}.{name}" for slot in attachment.slots for name in slot.unit.of_training
        }
        for name, tensor in attachment.units.state_dict(keep_vars=True).items():
            check_here(tensor, name)
            if not is_of_rounding(name) and name not in apart:
                yield name.replace("/", "."), tensor
    for name, parameter in head_parameters(model):
        check_here(parameter, name)
        yield HEAD + name, parameter


def _rounded_slots(model: nn.Module) -> Iterator[tuple[str, AttachedUnit]]:
    """Beginning of the file names of each unit whose values are rounded, and the unit."""
    attachment = attachment_of(model)
    for slot in attachment.slots if attachment is not None else ():
        if slot.kind.bits < FULL_BITS:
            yield slot.key.replace("/", "."), slot


def _packed_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """File name -> tensor of rounded values: ``layers.0.attn.q:lora@4.codes`` and ``...scales``."""
    for prefix, slot in _rounded_slots(model):
        for name, tensor in packed_values(slot.unit, slot.kind.bits).items():
            yield f"{prefix}.{name}", tensor


def values_of(model: nn.Module) -> dict[str, Tensor]:
    """What attached modules and the head compute with, by file name: rounded values as floats, and all directions."""
    named = dict(_named_tensors(model))
    attachment = attachment_of(model)
    for slot in attachment.slots if attachment is not None else ():
        names = [*dict(trained_tensors(slot.unit)), *dict(slot.unit.named_buffers())]
        for name in names:
            if not is_of_rounding(name):
                named[f"{slot.key.replace('/', '.')}.{name}"] = operator.attrgetter(name)(
                    slot.unit
                )
    return {n: p.detach().cpu().clone().contiguous() for n, p in named.items()}


def weights_of(model: nn.Module, *, whole: bool = False) -> dict[str, Tensor]:
    """Copies of the attached modules' and the head's weights, on the CPU, by file name; or of all weights."""
    named = dict(_named_tensors(model)) | dict(_packed_tensors(model))
    if whole:
        named |= {BACKBONE + n: p for n, p in backbone_parameters(model)}
        named |= {HEAD + n: p for n, p in language_head_parameters(model)}
    return {n: p.detach().cpu().clone().contiguous() for n, p in named.items()}


def pack_weights(model: nn.Module, classes: Sequence[str], *, whole: bool = False) -> bytes:
    """Attached modules and head as safetensors, or the whole of a model, with the classes in its metadata."""
    metadata = {"format": "pt", "classes": json.dumps(classes), **remade_metadata(model)}
    return safetensors.torch.save(weights_of(model, whole=whole), metadata)


def load_weights(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Load what ``weights_of`` gave. A head of another shape (another task) is left as it is, with a warning.

    Raises:
        StructureError: If an attached module's tensor is missing, unknown, or has another shape, a tensor of
            the head is one of the backbone, the head that fits is not whole, or a number is not finite. The head is
            then as it was.
    """
    packed = dict(_packed_tensors(model))
    wanted = dict(_named_tensors(model)) | packed
    parameters = dict(model.named_parameters())
    unknown = sorted(
        n
        for n in weights
        if n not in wanted and (not n.startswith(HEAD) or n.removeprefix(HEAD) in parameters)
    )
    head = {n.removeprefix(HEAD): t for n, t in weights.items() if n.startswith(HEAD)}
    fits = all(n in parameters and parameters[n].shape == t.shape for n, t in head.items())
    missing = sorted(
        n for n in wanted if n not in weights and (not n.startswith(HEAD) or (head and fits))
    )
    shapes = sorted(
        n
        for n, p in wanted.items()
        if n in weights and not n.startswith(HEAD) and p.shape != weights[n].shape
    )
    if unknown or missing or shapes:
        raise StructureError(
            "the weights do not belong to this structure: "
            f"unknown {unknown[:3]}, missing {missing[:3]}, other shape {shapes[:3]}"
        )
    if damaged := sorted(
        n for n, p in wanted.items() if n in weights and not _like(weights[n], p)
    ):
        raise StructureError(
            f"the weights hold numbers that are not finite, or no fractions: {damaged[:3]}",
            "export the trained structure again",
        )
    attachment = attachment_of(model)
    if not fits:
        _warn(
            "the stored head does not fit this model's and was left out: train the head, or build the model "
            "with the classes that it was trained for"
        )
    elif not head and any(n.startswith(HEAD) for n in wanted):
        _warn("the stored weights hold no head: this model's is left as it is, train it")
    with torch.no_grad():
        for name, parameter in wanted.items():
            if not name.startswith(HEAD) and name not in packed:
                parameter.copy_(weights[name])
        for name, tensor in head.items() if fits else ():
            parameters[name].copy_(tensor)
    for prefix, slot in _rounded_slots(model):
        codes, scales = (weights[f"{prefix}.{name}"] for name in ("codes", "scales"))
        take_packed(slot.unit, slot.kind.bits, codes, scales)
    for slot in attachment.slots if attachment is not None else ():
        slot.unit.loaded()


def _like(tensor: Tensor, wanted: Tensor) -> bool:
    """Whether a tensor has fractions, and finite ones, where another has; codes are judged by who unpacks them."""
    if not wanted.is_floating_point():
        return True
    return tensor.is_floating_point() and bool(tensor.isfinite().all())


def _warn(text: str) -> None:
    warnings.warn(text, stacklevel=4)  # where a user attaches
