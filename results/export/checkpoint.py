"""The ``checkpoint`` format: the trained structure merged and cut, loaded again and compared."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sparsearch.errors import ExportError, StructureError
from sparsearch.results.export.trained import Trained
from sparsearch.results.export.verify import check_padding, compare, logits_of
from sparsearch.spaces.backbone.inputs.readers import READERS
from sparsearch.spaces.backbone.loading import load_model
from sparsearch.spaces.compaction.checkpoint import load_checkpoint, save_checkpoint
from sparsearch.spaces.compaction.compact import compact
from sparsearch.spaces.compaction.sparsity import weight_sparsity

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["write_checkpoint"]


def write_checkpoint(
    trained: Trained, folder: Path, inference_flops_ratio: float | None
) -> tuple[tuple[str, ...], float]:
    """Write a checkpoint, and prove it.

    Args:
        trained: The structure with its weights.
        folder: Exists, and is empty.
        inference_flops_ratio: Of the structure, if known.

    Returns:
        Notes for the user, and the largest difference of a logit.

    Raises:
        ExportError: If the structure cannot be merged, or the round trip differs.
    """
    model, expected, filled = _small_model(trained)
    check_padding(expected)
    written = save_checkpoint(
        model,
        trained.structure,
        folder,
        inference_flops_ratio=inference_flops_ratio,
        tokenizer=trained.processor,
    )
    again = load_checkpoint(folder)
    _check_written(model, again)
    difference = compare(expected, logits_of(again))
    note = "load it with sparsearch.load_checkpoint(folder)"
    if written.plain:
        plain = load_model(
            str(folder), num_labels=model.config.num_labels, auto_model=trained.facts.auto_model
        )
        step = "loaded with transformers alone"
        difference = max(difference, compare(expected, logits_of(plain), step))
        note += ", or with transformers alone"
    else:
        note += "; transformers alone does not know what was changed"
    notes = READERS[trained.facts.reads].notes(model.config, trained.processor)
    return (note, *filled, *notes), difference


def _small_model(trained: Trained) -> tuple[PreTrainedModel, Tensor, tuple[str, ...]]:
    """The merged and slim model, the logits from before, and a note where zeros of the backbone are lost."""
    if trained.whole:
        model = trained.fine_tuned_model()
        return model, logits_of(model), ()
    model = trained.attached_model()
    expected = logits_of(model)
    try:
        before = weight_sparsity(model)
        compact(model, trained.structure)
    except StructureError as error:
        hint = "export it with --to spec, which keeps it attached"
        raise ExportError(f"no checkpoint of this structure: {error.message}", hint) from error
    after = weight_sparsity(model)
    if round(before - after, 3) <= 0:
        return model, expected, ()
    cuts = any(candidate.which for candidate in trained.structure.candidates)
    what = "merging and cutting take zeros from" if cuts else "merging fills zeros of"
    note = f"{what} the backbone's linears: {before:.1%} -> {after:.1%}; --to spec keeps them"
    return model, expected, (note,)


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
