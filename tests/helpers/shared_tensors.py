"""Tensors of a backbone, and whether one is mapped from a file that workers share."""

from __future__ import annotations

from transformers import PreTrainedModel

from sparsearch.workers.trials.shared_cache import _mapped_ranges


def mapped(tensor):
    return any(start <= tensor.data_ptr() < end for start, end in _mapped_ranges())


def backbone(model: PreTrainedModel):
    return dict(model.base_model.named_parameters())
