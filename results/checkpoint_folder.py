"""The ``checkpoint`` format: the trained structure merged and cut, loaded again and compared."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors.torch
import torch
from torch import Tensor

from sparsearch.errors import BackboneError, ExportError, StructureError
from sparsearch.results.round_trip import (
    classes_of,
    compare,
    fine_tuned,
    fresh_model,
    is_whole,
    logits_of,
)
from sparsearch.results.values import Best
from sparsearch.spaces.attach import attach
from sparsearch.spaces.backbone import head_parameters, load_model, load_tokenizer, locate
from sparsearch.spaces.checkpoint import load_checkpoint, save_checkpoint
from sparsearch.spaces.merge import weight_sparsity
from sparsearch.spaces.slim import slim
from sparsearch.spaces.structure import Structure
from sparsearch.spaces.weights_file import HEAD, load_weights

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["write_checkpoint"]

_TOKENIZERS = (
    "tokenizer.json",
    "tokenizer.model",
    "spiece.model",
    "spm.model",
    "sentencepiece.bpe.model",
    "vocab.txt",
    "vocab.json",
)
"""One of these is in every folder that has a tokenizer; without, transformers makes an empty one up."""


def write_checkpoint(best: Best, weights: bytes, folder: Path) -> tuple[tuple[str, ...], float]:
    """Write a checkpoint, and prove it.

    Returns:
        Notes for the user, and the largest difference of a logit.

    Raises:
        ExportError: If the structure cannot be merged, or the round trip differs.
    """
    structure, whole = best.structure, is_whole(weights)
    model = fine_tuned(structure, weights) if whole else fresh_model(structure, weights)
    if classes := classes_of(weights):
        model.config.id2label = dict(enumerate(classes))
        model.config.label2id = {name: number for number, name in enumerate(classes)}
    tokenizer = _tokenizer(structure)
    if tokenizer is not None:
        model.config.pad_token_id = tokenizer.pad_token_id
    expected = logits_of(model) if whole else _slim_trained(model, structure, weights)
    written = save_checkpoint(
        model,
        structure,
        folder,
        inference_flops_ratio=best.inference_flops_ratio,
        tokenizer=tokenizer,
    )
    again = load_checkpoint(folder)
    _check_written(model, again)
    difference = compare(expected, logits_of(again))
    notes = ["load it with sparsearch.load_checkpoint(folder)"]
    if written.plain:
        plain = load_model(str(folder), num_labels=model.config.num_labels)
        difference = max(difference, compare(expected, logits_of(plain)))
        notes = [f"{notes[0]}, or with transformers alone"]
    else:
        notes = [f"{notes[0]}; transformers alone does not know what was changed"]
    if tokenizer is None:
        notes.append("no tokenizer is in it: the backbone's folder has none")
    return tuple(notes), difference


def _slim_trained(model: PreTrainedModel, structure: Structure, weights: bytes) -> Tensor:
    """Attach, load and slim; the logits from before."""
    tensors = safetensors.torch.load(weights)
    _check_head(model, tensors)
    attach(model, structure)
    load_weights(model, tensors)
    expected = logits_of(model)
    try:
        slim(model, structure)
    except StructureError as error:
        hint = "export it with --to spec, which keeps it attached"
        raise ExportError(f"no checkpoint of this structure: {error.message}", hint) from error
    return expected


def _tokenizer(structure: Structure) -> Any:
    """The backbone's tokenizer; None where it has none, or none that loads."""
    path = locate(structure.backbone.path)
    if Path(path).is_dir() and not any((Path(path) / name).is_file() for name in _TOKENIZERS):
        return None
    try:
        return load_tokenizer(path, structure.backbone.revision)
    except BackboneError:
        return None


def _check_head(model: torch.nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """The trained head must be whole: a checkpoint is for use as it is."""
    for name, parameter in head_parameters(model):
        if HEAD + name not in tensors or tensors[HEAD + name].shape != parameter.shape:
            raise ExportError(f"the stored weights lack the task head's {name}")


def _check_written(model: torch.nn.Module, again: torch.nn.Module) -> None:
    """The reloaded model has the same weights by name, shape and type, and as many zeros."""
    before, after = (
        {name: (tensor.shape, tensor.dtype) for name, tensor in m.state_dict().items()}
        for m in (model, again)
    )
    if before != after:
        changed = sorted(dict(before.items() ^ after.items()))
        raise ExportError(f"the loaded weights are not those that were written: {changed[:4]}")
    if weight_sparsity(again) != weight_sparsity(model):
        raise ExportError("the loaded weights are not as sparse as those that were written")
