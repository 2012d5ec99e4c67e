"""The weights of what is attached, of the head, and at times of the backbone, by their names in a file."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from sparsearch.errors import StructureError
from sparsearch.spaces.attachment.attachment import attachment_of
from sparsearch.spaces.attachment.elsewhere import check_here
from sparsearch.spaces.backbone.parameters import backbone_parameters, head_parameters

__all__ = ["BACKBONE", "HEAD", "load_weights", "weights_of"]

HEAD = "head:"
"""Prefix of the task head's tensors."""

BACKBONE = "backbone:"
"""Prefix of the backbone's own tensors, where it was trained too."""


def _named_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """File name -> tensor: ``layers.0.attn.q:lora.A`` for attached modules, ``head:...`` for the head."""
    attachment = attachment_of(model)
    if attachment is not None:
        for name, tensor in attachment.units.state_dict(keep_vars=True).items():
            check_here(tensor, name)
            yield name.replace("/", "."), tensor
    for name, parameter in head_parameters(model):
        check_here(parameter, name)
        yield HEAD + name, parameter


def weights_of(model: nn.Module, *, whole: bool = False) -> dict[str, Tensor]:
    """Copies of the attached modules' and the head's weights, on the CPU, by file name; or of all weights."""
    named = dict(_named_tensors(model))
    if whole:
        named |= {BACKBONE + n: p for n, p in backbone_parameters(model)}
    return {n: p.detach().cpu().clone().contiguous() for n, p in named.items()}


def load_weights(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Load what ``weights_of`` gave. A head of another shape (another task) is left as it is, with a warning.

    Raises:
        StructureError: If an attached module's tensor is missing, unknown, or has another shape, a tensor of
            the head is one of the backbone, or the head that fits is not whole. The head is then as it was.
    """
    wanted = dict(_named_tensors(model))
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
            if not name.startswith(HEAD):
                parameter.copy_(weights[name])
        for name, tensor in head.items() if fits else ():
            parameters[name].copy_(tensor)
    for slot in attachment.slots if attachment is not None else ():
        slot.unit.loaded()


def _warn(text: str) -> None:
    warnings.warn(text, stacklevel=4)  # where a user attaches
