"""What an export is compared with: the structure attached to the backbone from disk, with the stored weights."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import safetensors.torch
import torch
from torch import Tensor

from sparsearch.errors import ExportError
from sparsearch.spaces.attach import attach
from sparsearch.spaces.backbone import backbone_parameters, head_parameters, load_model, locate
from sparsearch.spaces.slim import slim
from sparsearch.spaces.structure import Structure
from sparsearch.spaces.weights_file import BACKBONE, HEAD, load_weights

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = [
    "classes_of",
    "compare",
    "fine_tuned",
    "fresh_model",
    "is_whole",
    "logits_of",
    "reference",
]

TOLERANCE = 1e-5
"""Largest allowed difference of a logit after the round trip, relative to the largest logit if that is above 1."""


def fresh_model(structure: Structure, weights: bytes) -> PreTrainedModel:
    """The backbone from disk, with a head of the exported width."""
    path = locate(structure.backbone.path)
    classes = classes_of(weights)
    return load_model(path, revision=structure.backbone.revision, num_labels=len(classes) or 1)


def classes_of(weights: bytes) -> list[str]:
    """Class names from the metadata of a safetensors file: 8 bytes of length, then a JSON header.

    Raises:
        ExportError: If these are no trained weights.
    """
    size = int.from_bytes(weights[:8], "little")
    try:
        header = json.loads(weights[8 : 8 + size])
        classes: list[str] = json.loads(header["__metadata__"]["classes"])
    except (ValueError, KeyError) as error:
        raise ExportError(
            "the structure has no trained weights, or they are damaged",
            "train it anew: sparsearch train STRUCTURE STUDY.yaml",
        ) from error
    return classes


def is_whole(weights: bytes) -> bool:
    """Whether the stored weights are those of a whole fine-tuned model, see ``train.backbone``."""
    size = int.from_bytes(weights[:8], "little")
    return any(name.startswith(BACKBONE) for name in json.loads(weights[8 : 8 + size]))


@torch.no_grad()
def fine_tuned(structure: Structure, weights: bytes) -> PreTrainedModel:
    """What the structure leaves of the backbone, with the stored weights of all of it.

    Raises:
        ExportError: If the weights are of another model.
    """
    model = slim(fresh_model(structure, weights), structure, attached=False)
    wanted = {BACKBONE + n: p for n, p in backbone_parameters(model)}
    wanted |= {HEAD + n: p for n, p in head_parameters(model)}
    stored = safetensors.torch.load(weights)
    if {n: t.shape for n, t in stored.items()} != {n: p.shape for n, p in wanted.items()}:
        raise ExportError("the stored weights are not those of what the structure leaves")
    for name, parameter in wanted.items():
        parameter.copy_(stored[name])
    return model


@torch.no_grad()
def logits_of(model: torch.nn.Module) -> Tensor:
    """Logits of three fixed token sequences in float32."""
    model.eval()
    config = model.config
    generator = torch.Generator().manual_seed(0)
    found = []
    for length in (4, 9, 16):
        ids = torch.randint(5, config.vocab_size, (1, length), generator=generator)  # type: ignore[union-attr, arg-type]
        if config.model_type == "t5":  # type: ignore[union-attr]
            ids[:, -1] = config.eos_token_id  # type: ignore[union-attr, assignment]
        found.append(model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits)
    return torch.cat(found)


def reference(structure: Structure, weights: bytes) -> Tensor:
    """Logits of the structure with the stored weights."""
    model = fresh_model(structure, weights)
    attach(model, structure)
    load_weights(model, safetensors.torch.load(weights))
    return logits_of(model)


def compare(expected: Tensor, found: Tensor) -> float:
    """Largest difference of two sets of logits.

    Raises:
        ExportError: If it is above what rounding explains.
    """
    difference = float((expected - found).abs().max())
    allowed = TOLERANCE * max(1.0, float(expected.abs().max()))
    if not difference <= allowed:
        raise ExportError(
            f"the export does not survive its round trip: logits differ by {difference:.2e} (allowed {allowed:.0e})"
        )
    return difference
